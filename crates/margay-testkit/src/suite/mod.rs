//! Cases for every op, shared by all backends.
//!
//! A case is one small program with weights, and calls whose sizes vary: one executable serves them all, as in real
//! use. One file a family of ops; [`cases`] lists them all.

mod attention;
mod blocks;
mod case;
mod conv;
mod experts;
mod layout;
mod linear;
mod rows;

pub use case::{Call, Case, Input};

use crate::tolerance::{Distance, Policy, Tolerance};
use margay_graph::{Backend, BackendError, Cancel, Executable, State, StateOptions};

/// What writes the cases. One line a file of this folder, `case` aside.
const FAMILIES: &[fn(&mut Vec<Case>)] = &[
    attention::cases,
    blocks::cases,
    conv::cases,
    experts::cases,
    layout::cases,
    linear::cases,
    rows::cases,
];

/// Every case, each of a name of its own.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for family in FAMILIES {
        family(&mut cases);
    }
    cases
}

/// How a case went.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// Within its tolerance.
    Pass,
    /// Beyond its tolerance.
    Drift,
    /// The backend says that it cannot do this op, format or size.
    Unsupported(String),
    /// The backend failed, or broke a promise of its traits.
    Failed(String),
}

/// One case on one backend.
#[derive(Clone, Debug, PartialEq)]
pub struct CaseResult {
    /// Name of the op.
    pub op: &'static str,
    /// Name of the case.
    pub name: String,
    /// How it went.
    pub verdict: Verdict,
    /// The output that was farthest from the oracle, relative to its tolerance.
    pub worst: Distance,
    /// Which call and output that was: `call 2 y`.
    pub worst_at: String,
    /// The bound.
    pub tolerance: Tolerance,
}

impl CaseResult {
    /// Whether the case is within its tolerance.
    pub fn passed(&self) -> bool {
        self.verdict == Verdict::Pass
    }
}

impl std::fmt::Display for CaseResult {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let CaseResult { op, name, verdict, worst, worst_at, tolerance } = self;
        write!(f, "{op} {name}: ")?;
        match verdict {
            Verdict::Pass => write!(f, "ok, ")?,
            Verdict::Drift => write!(f, "DRIFTS at {worst_at}, ")?,
            Verdict::Unsupported(why) => return write!(f, "unsupported: {why}"),
            Verdict::Failed(why) => return write!(f, "FAILED: {why}"),
        }
        let Distance { max_error, rms_error, max_oracle, rms_oracle } = worst;
        write!(
            f,
            "max {max_error:.2e} of {max_oracle:.2e}, rms {rms_error:.2e} of {rms_oracle:.2e} ({tolerance:?})"
        )
    }
}

/// Runs cases on `backend` and on `oracle`.
///
/// # Panics
/// Where the oracle fails: then the case is wrong.
pub fn run_suite(
    backend: &dyn Backend,
    oracle: &dyn Backend,
    policy: &Policy,
    cases: &[Case],
) -> Vec<CaseResult> {
    cases.iter().map(|case| run_case(backend, oracle, policy, case)).collect()
}

/// Runs every case and fails with the list of those that did not pass: drifted, failed, or unsupported.
///
/// # Panics
/// Where a case did not pass.
pub fn assert_suite(backend: &dyn Backend, oracle: &dyn Backend, policy: &Policy) {
    let results = run_suite(backend, oracle, policy, &cases());
    let failed: Vec<_> = results.iter().filter(|r| !r.passed()).collect();
    let list: String = failed.iter().map(|r| format!("{r}\n")).collect();
    assert!(
        failed.is_empty(),
        "{}: {} of {} cases:\n{list}",
        backend.describe(),
        failed.len(),
        results.len()
    );
}

/// Runs one case on `backend` and on `oracle`.
///
/// # Panics
/// Where the oracle fails: then the case is wrong.
pub fn run_case(backend: &dyn Backend, oracle: &dyn Backend, policy: &Policy, case: &Case) -> CaseResult {
    let mut oracle_run =
        Run::start(oracle, case).unwrap_or_else(|e| panic!("oracle: {} {}: {e}", case.op, case.name));
    let tolerance = policy.of(case.class);
    let mut result = CaseResult {
        op: case.op,
        name: case.name.clone(),
        verdict: Verdict::Pass,
        worst: Distance::default(),
        worst_at: String::new(),
        tolerance,
    };
    let outcome = Run::start(backend, case).and_then(|mut run| {
        for (at, call) in case.calls.iter().enumerate() {
            oracle_run
                .call(call)
                .unwrap_or_else(|e| panic!("oracle: {} {} call {at}: {e}", case.op, case.name));
            run.call(call)?;
            for (name, _) in case.program.outputs() {
                let expected = oracle_run.output(name)?;
                let distance = Distance::between(run.output(name)?, expected);
                let fails = !distance.within(tolerance);
                let worse = distance.relative() > result.worst.relative() || result.worst_at.is_empty();
                let first_fail = fails && result.verdict == Verdict::Pass;
                if first_fail || (worse && (fails || result.verdict == Verdict::Pass)) {
                    result.worst = distance;
                    result.worst_at = format!("call {at} {name}");
                }
                if fails {
                    result.verdict = Verdict::Drift;
                }
            }
            if run.held() != oracle_run.held() {
                let what =
                    format!("call {at}: the state holds {:?}, not {:?}", run.held(), oracle_run.held());
                return Err(BackendError::Call { what });
            }
        }
        Ok(())
    });
    match outcome {
        Ok(()) => {}
        Err(e @ BackendError::Unsupported { .. }) => result.verdict = Verdict::Unsupported(e.to_string()),
        Err(e) => result.verdict = Verdict::Failed(e.to_string()),
    }
    result
}

/// A case under way on one backend.
struct Run {
    executable: Box<dyn Executable>,
    state: Option<Box<dyn State>>,
}

impl Run {
    fn start(backend: &dyn Backend, case: &Case) -> Result<Run, BackendError> {
        let executable = backend.compile(&case.program, &case.weights, &case.limits)?;
        let state =
            case.capacity.map(|capacity| executable.new_state(StateOptions::new(capacity))).transpose()?;
        Ok(Run { executable, state })
    }

    fn call(&mut self, call: &Call) -> Result<(), BackendError> {
        if let (Some(len), Some(state)) = (call.truncate, &mut self.state) {
            state.truncate(len);
        }
        let inputs: Vec<_> = call.inputs.iter().map(Input::view).collect();
        let state = self.state.as_mut().map(|s| &mut **s as &mut dyn State);
        self.executable.run(&call.bindings, &inputs, state, &Cancel::new())
    }

    fn output(&self, name: &str) -> Result<&[f32], BackendError> {
        self.executable
            .output(name)
            .ok_or_else(|| BackendError::Call { what: format!("no output {name} after a run") })
    }

    fn held(&self) -> Option<usize> {
        self.state.as_ref().map(|s| s.len())
    }
}
