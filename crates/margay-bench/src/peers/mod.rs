//! Other programs that answer the same question, in the same run.

mod command;
mod llama_bench;
mod llama_cpp;
mod onnxruntime;

use crate::{
    BenchError, Plan,
    heartbeat::Beating,
    record::{Begin, Run},
    watched::watch,
};
use margay_observe::{Clock, Recorder, Root, Sampler, Timeline, Watched, What};
use std::{
    io::Read,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

/// A kind of peer.
pub struct PeerKind {
    /// What stands before the `=` of `--peer`.
    pub id: &'static str,
    /// What it is, in a few words.
    pub summary: &'static str,
    /// The process that answers; with the tokens of Margay's prompt, once they are known.
    command: fn(&Peer, &Plan<'_>, Option<usize>) -> Result<Command, BenchError>,
    /// What it told of itself: stdout, stderr.
    told: fn(&Peer, &str, &str, &mut Run),
}

/// Every kind.
pub const PEERS: &[PeerKind] = &[llama_cpp::KIND, llama_bench::KIND, onnxruntime::KIND, command::KIND];

/// Bytes kept of what a peer writes.
const MOST_OUTPUT: u64 = 4 << 20;

/// Time between looks whether a peer has ended: the error of its time.
const LOOK: Duration = Duration::from_millis(1);

/// A peer that fewer samples than this saw alive was watched while it started, and no figure of its memory or its processor
/// time is one of its work.
const FEWEST_SAMPLES: usize = 4;

/// A peer as it was asked for.
#[derive(Clone)]
pub struct Peer {
    kind: &'static PeerKind,
    /// What stands behind the `=`.
    pub what: String,
}

impl std::fmt::Debug for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}={}", self.kind.id, self.what)
    }
}

impl Peer {
    /// Reads `KIND=WHAT`.
    ///
    /// # Errors
    /// [`BenchError::Peer`] with the kinds that there are.
    pub fn parse(spec: &str) -> Result<Self, BenchError> {
        let fail = |what| BenchError::Peer { spec: spec.to_owned(), what };
        let kinds = || PEERS.iter().map(|kind| kind.id).collect::<Vec<_>>().join(", ");
        let (id, what) = spec
            .split_once('=')
            .ok_or_else(|| fail(format!("KIND=WHAT is expected, KIND one of {}", kinds())))?;
        let kind = PEERS.iter().find(|kind| kind.id == id);
        let kind = kind.ok_or_else(|| fail(format!("no kind is called {id}; there are {}", kinds())))?;
        if what.trim().is_empty() {
            return Err(fail("nothing stands behind the =".to_owned()));
        }
        Ok(Peer { kind, what: what.trim().to_owned() })
    }

    /// Name of its engine in a record.
    pub fn name(&self) -> &'static str {
        self.kind.id
    }

    /// Checks that a command can be made of it, before anything is measured.
    ///
    /// # Errors
    /// [`BenchError::Peer`].
    pub(crate) fn check(&self, plan: &Plan<'_>) -> Result<String, BenchError> {
        (self.kind.command)(self, plan, None).map(|command| words(&command))
    }

    /// Runs it once, watched with all that it starts; `None` where the wish to stop ended it.
    pub(crate) fn run(
        &self,
        plan: &Plan<'_>,
        idle_watts: Option<f64>,
        (round, prompt_tokens): (usize, Option<usize>),
    ) -> Result<Option<(Run, Timeline)>, BenchError> {
        let mut command = (self.kind.command)(self, plan, prompt_tokens)?;
        let shown = words(&command);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let clock = Clock::start();
        let beating = Beating::start(plan.stop.clone())?;
        let began = clock.now();
        let fail = |source| BenchError::Start { what: shown.clone(), source };
        let mut child = command.spawn().map_err(fail)?;
        let what = What { process: Watched::Tree(child.id()), threads: false };
        let sampler = Sampler::start(Root::system(), clock, plan.period, what);
        let ended = wait(&mut child, plan).map_err(fail)?;
        let end = clock.now();
        let heartbeat = beating.stop();
        let series = sampler.map(Sampler::stop).unwrap_or_default();
        let Some((status, stdout, stderr)) = ended else { return Ok(None) };
        if !status.success() {
            let said = stderr.trim_end();
            let from = said.char_indices().rev().nth(400).map_or(0, |(at, _)| at);
            let said = said[from..].to_owned();
            let name = self.name().to_owned();
            return Err(BenchError::PeerFailed { name, status: status.to_string(), said, command: shown });
        }
        let mut timeline = Timeline::new(self.name(), &Recorder::with_clock(clock), series);
        timeline.idle_watts = idle_watts;
        let mut run = Run { round, begin: Begin::Cold, heartbeat, ..Run::default() };
        run.with_load_ms = Some(end.saturating_sub(began).as_secs_f64() * 1e3);
        (self.kind.told)(self, &stdout, &stderr, &mut run);
        watch(&mut run, &timeline, (began, end));
        if timeline.series.samples.iter().filter(|sample| sample.rss_bytes.is_some()).count() < FEWEST_SAMPLES
        {
            (run.peak_rss_bytes, run.peak_anonymous_bytes, run.process_cpu_percent) = (None, None, None);
        }
        Ok(Some((run, timeline)))
    }
}

/// A path, and the arguments behind it.
fn split(peer: &Peer) -> Result<(&str, Vec<&str>), BenchError> {
    let mut words = peer.what.split_whitespace();
    let missing = || BenchError::Peer { spec: format!("{peer:?}"), what: "its path is missing".to_owned() };
    Ok((words.next().ok_or_else(missing)?, words.collect()))
}

/// Margay's model, for those that read GGUF files.
fn needs_gguf<'p>(peer: &Peer, plan: &'p Plan<'_>) -> Result<&'p Path, BenchError> {
    let model = plan.model_file.as_deref().filter(|path| path.extension().is_some_and(|e| e == "gguf"));
    let what = "it needs a GGUF file: give Margay one, or add \"-m MODEL --mmproj FILE\" behind the path";
    model.ok_or_else(|| BenchError::Peer { spec: format!("{peer:?}"), what: what.to_owned() })
}

/// A command line for people.
fn words(command: &Command) -> String {
    let word = |word: &std::ffi::OsStr| {
        let word = word.to_string_lossy();
        if word.contains('\n') {
            "(a script of Margay's)".to_owned()
        } else if word.is_empty() || word.contains(char::is_whitespace) {
            format!("{word:?}")
        } else {
            word.into_owned()
        }
    };
    std::iter::once(command.get_program()).chain(command.get_args()).map(word).collect::<Vec<_>>().join(" ")
}

type Ended = (ExitStatus, String, String);

/// Waits for a process and reads what it writes; ends it where the wish to stop comes first.
fn wait(child: &mut Child, plan: &Plan<'_>) -> std::io::Result<Option<Ended>> {
    let readers = [
        child.stdout.take().map(|out| read_all(Box::new(out))),
        child.stderr.take().map(|err| read_all(Box::new(err))),
    ];
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if plan.stop.is_cancelled() {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(LOOK);
    };
    let [stdout, stderr] =
        readers.map(|reader| reader.and_then(|thread| thread.join().ok()).unwrap_or_default());
    // The keyboard's Ctrl-C reaches the peer as well.
    Ok((!plan.stop.is_cancelled()).then_some((status, stdout, stderr)))
}

fn read_all(mut from: Box<dyn Read + Send>) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        let _ = from.by_ref().take(MOST_OUTPUT).read_to_end(&mut kept);
        // A peer must not stop because nobody reads the rest.
        let _ = std::io::copy(&mut from, &mut std::io::sink());
        String::from_utf8_lossy(&kept).into_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_its_kind_and_what_it_is_started_with() {
        let peer = Peer::parse("command=sleep 1").unwrap();
        assert_eq!((peer.name(), peer.what.as_str()), ("command", "sleep 1"));
        for (spec, reason) in [
            ("sleep 1", "KIND=WHAT"),
            ("ollama=x", "there are llama.cpp, llama-bench, onnxruntime, command"),
            ("command=  ", "nothing stands behind"),
        ] {
            let message = Peer::parse(spec).unwrap_err().to_string();
            assert!(message.contains(reason) && message.contains(spec), "{message}");
        }
    }
}
