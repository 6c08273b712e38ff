//! The reference equals naive loops in float64 on every case of the suite, and the suite notices when it would not.
#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]

use margay_graph::{
    Activation, Backend, BackendError, Bindings, Cancel, Executable, InputData, MemoryUse, Op, Program,
    State, StateOptions, Sym, WeightSource,
};
use margay_reference::ReferenceBackend;
use margay_testkit::{
    naive::NaiveBackend,
    suite::{self, CaseResult, Verdict},
    tolerance::{Class, Policy},
};
use std::collections::BTreeSet;

fn listed<'a>(results: impl IntoIterator<Item = &'a CaseResult>) -> String {
    results.into_iter().map(|r| format!("{r}\n")).collect()
}

#[test]
fn reference_equals_float64_loops_on_every_case() {
    suite::assert_suite(&ReferenceBackend::new(), &NaiveBackend::exact(), &Policy::FLOAT32);
}

#[test]
fn cases_cover_every_op_activation_format_and_class_under_names_of_their_own() {
    let cases = suite::cases();
    let names: BTreeSet<_> = cases.iter().map(|c| (c.op, &c.name)).collect();
    assert_eq!(names.len(), cases.len());
    let named: BTreeSet<_> = cases.iter().map(|c| c.op).collect();
    for case in cases.iter().filter(|c| c.op != "block") {
        assert!(case.program.nodes().iter().any(|n| n.op.name() == case.op), "{} {}", case.op, case.name);
    }
    let used: BTreeSet<_> = cases.iter().flat_map(|c| c.program.nodes()).map(|n| n.op.name()).collect();
    let own: BTreeSet<_> = used.iter().copied().filter(|op| *op != "input").chain(["block"]).collect();
    assert_eq!(named, own, "every op has cases of its own");
    assert_eq!(used.len(), 28, "{used:?}: a new op wants cases");
    for class in [Class::Copy, Class::Float, Class::HalfCache, Class::Int8, Class::Int8Chain] {
        assert!(cases.iter().any(|c| c.class == class));
    }
    let fused_activation =
        |act| move |n: &margay_graph::Node| matches!(&n.op, Op::Linear(l) if l.activation == Some(act));
    for act in Activation::ALL {
        assert!(cases.iter().flat_map(|c| c.program.nodes()).any(fused_activation(act)), "{act:?}");
    }
    let stored: BTreeSet<_> = cases.iter().flat_map(|c| c.weights.iter()).map(|(_, t)| t.dtype()).collect();
    assert!(margay_quant::FORMATS.iter().all(|f| stored.contains(&f.dtype())), "{stored:?}");
}

/// The reference with one wrong number a run, or none where there are no numbers.
struct Broken {
    by: f32,
}

struct BrokenExecutable {
    inner: Box<dyn Executable>,
    by: f32,
    outputs: Vec<(String, Vec<f32>)>,
}

impl Backend for Broken {
    fn id(&self) -> &'static str {
        "broken"
    }

    fn describe(&self) -> String {
        "wrong by design".to_owned()
    }

    fn compile(
        &self,
        program: &Program,
        weights: &dyn WeightSource,
        limits: &Bindings,
    ) -> Result<Box<dyn Executable>, BackendError> {
        let inner = ReferenceBackend::new().compile(program, weights, limits)?;
        Ok(Box::new(BrokenExecutable { inner, by: self.by, outputs: vec![] }))
    }
}

impl Executable for BrokenExecutable {
    fn program(&self) -> &Program {
        self.inner.program()
    }

    fn memory(&self) -> MemoryUse {
        self.inner.memory()
    }

    fn new_state(&self, options: StateOptions) -> Result<Box<dyn State>, BackendError> {
        self.inner.new_state(options)
    }

    fn run(
        &mut self,
        bindings: &Bindings,
        inputs: &[InputData<'_>],
        state: Option<&mut dyn State>,
        cancel: &Cancel,
    ) -> Result<(), BackendError> {
        self.inner.run(bindings, inputs, state, cancel)?;
        let outputs = self.inner.program().outputs().iter();
        self.outputs = outputs.map(|(n, _)| (n.clone(), self.inner.output(n).unwrap().to_vec())).collect();
        for (_, output) in &mut self.outputs {
            let rms = (output.iter().map(|x| x * x).sum::<f32>() / output.len().max(1) as f32).sqrt();
            if let Some(last) = output.last_mut() {
                *last += self.by * rms.max(1e-3);
            }
        }
        Ok(())
    }

    fn output(&self, name: &str) -> Option<&[f32]> {
        self.outputs.iter().find(|(n, _)| n == name).map(|(_, x)| x.as_slice())
    }
}

#[test]
fn one_wrong_number_is_noticed_in_every_case_and_by_every_policy() {
    let cases = suite::cases();
    let small: Vec<_> = cases.into_iter().filter(|c| !c.name.contains("729")).collect();
    // One number of one output, off by half the root mean square: a wrong element at the end of a row.
    let results = suite::run_suite(&Broken { by: 0.5 }, &ReferenceBackend::new(), &Policy::FAST, &small);
    let missed: Vec<_> = results.iter().filter(|r| r.verdict != Verdict::Drift).collect();
    assert!(missed.is_empty(), "{}", listed(missed));
    let exact = suite::run_suite(&Broken { by: 0.0 }, &ReferenceBackend::new(), &Policy::FAST, &small);
    assert!(exact.iter().all(CaseResult::passed), "{}", listed(exact.iter().filter(|r| !r.passed())));
}

/// Refuses to compile, or runs and fails.
struct Refuses {
    compile: bool,
}

impl Backend for Refuses {
    fn id(&self) -> &'static str {
        "refuses"
    }

    fn describe(&self) -> String {
        "does nothing".to_owned()
    }

    fn compile(
        &self,
        program: &Program,
        weights: &dyn WeightSource,
        limits: &Bindings,
    ) -> Result<Box<dyn Executable>, BackendError> {
        if self.compile {
            return Err(BackendError::Unsupported { backend: "refuses", what: "anything".to_owned() });
        }
        // Limits below the calls' sizes: the reference then refuses every call with more rows.
        let limits = Sym::ALL.iter().fold(*limits, |b, sym| b.with(*sym, 0));
        ReferenceBackend::new().compile(program, weights, &limits)
    }
}

#[test]
fn what_is_unsupported_and_what_fails_is_told_apart_and_neither_passes() {
    let cases: Vec<_> = suite::cases().into_iter().filter(|c| c.op == "gather_rows").collect();
    assert!(!cases.is_empty());
    for compile in [true, false] {
        for result in suite::run_suite(&Refuses { compile }, &NaiveBackend::exact(), &Policy::FAST, &cases) {
            assert!(!result.passed());
            match result.verdict {
                Verdict::Unsupported(why) => assert!(compile && why.contains("anything"), "{why}"),
                Verdict::Failed(why) => assert!(!compile && why.contains("compiled for at most 0"), "{why}"),
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn parts_of_a_prefix_and_maps_that_do_not_fit_are_refused() {
    margay_testkit::refusals::of_a_part_of_a_prefix(&ReferenceBackend::new());
    margay_testkit::refusals::of_maps_that_do_not_fit(&ReferenceBackend::new());
}
