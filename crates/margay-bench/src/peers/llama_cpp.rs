//! llama.cpp's `llama-mtmd-cli`: its own times from the lines it writes to stderr.
//!
//! Sources, in llama.cpp: `tools/mtmd/mtmd-helper.cpp` ("%s slice encoded in %d ms", "%s decoded (batch %d/%d) in %d ms"),
//! `tools/mtmd/mtmd-cli.cpp` of 2026 ("mtmd batch encoding done in %d ms"), `src/llama-context.cpp` and `common/sampling.cpp`
//! (`llama_perf_context_print`, `common_perf_print`: load, prompt eval, eval and total time). Newer versions put a time and a
//! letter before each line, and need `-v` to tell of pictures.
//!
//! What nests in what: prompt eval counts every batch of more than one token, so it contains the decoding of the picture. Its time
//! runs from the first batch to the moment somebody waits for results (`llama_context::synchronize`): where words stand in front of
//! the picture and nobody waits for them, encoding lies in it, too, and is taken out here. That this is so is seen from the whole
//! process, which is then shorter than the sum of its parts. Load ends with the first batch: the empty run that warms the model up, or, under `--no-warmup`,
//! the first of the prompt, which is then in both. The vision file is loaded behind the warm-up and is in total time, which is
//! why total time is not taken here.

use super::{Peer, PeerKind, needs_gguf, split};
use crate::{BenchError, Plan, record::Run};
use std::process::Command;

pub(super) const KIND: PeerKind =
    PeerKind { id: "llama.cpp", summary: "llama-mtmd-cli, with its own times of stages", command, told };

/// The path, then arguments that are added; without `-m` among them, the model, its vision file and the threads are those of
/// Margay.
fn command(peer: &Peer, plan: &Plan<'_>, _: Option<usize>) -> Result<Command, BenchError> {
    let fail = |what: &str| BenchError::Peer { spec: format!("{peer:?}"), what: what.to_owned() };
    let (path, more) = split(peer)?;
    let [picture] = &plan.pictures[..] else {
        return Err(fail("it is asked about one picture, no more and no less"));
    };
    let mut command = Command::new(path);
    if !more.iter().any(|word| ["-m", "--model"].contains(word)) {
        command.arg("-m").arg(needs_gguf(peer, plan)?);
        if let Some(mmproj) = &plan.mmproj_file {
            command.arg("--mmproj").arg(mmproj);
        }
    }
    if let Some(threads) = plan.threads
        && !more.iter().any(|word| ["-t", "--threads"].contains(word))
    {
        command.arg("-t").arg(threads.to_string());
    }
    command.arg("--image").arg(picture).arg("-p").arg(&plan.prompt);
    command.arg("-n").arg(plan.ask.max_tokens.to_string());
    command.arg("--temp").arg(plan.ask.sampling.temperature.to_string()).args(more);
    Ok(command)
}

fn told(peer: &Peer, stdout: &str, stderr: &str, run: &mut Run) {
    let lines = Lines::read(stderr);
    let s = &mut run.stages;
    s.load = lines.load;
    s.encode = lines.encode;
    // Without the warm-up load ends with the first batch of the prompt, which is then counted twice as it is.
    let warm = !peer.what.split_whitespace().any(|word| word == "--no-warmup");
    s.prefill = lines.prompt_eval_without_encode(run.with_load_ms.filter(|_| warm));
    s.image_prefill = lines.image_decode;
    s.decode = lines.eval.map(|(ms, _)| ms);
    run.prompt_tokens = lines.prompt_eval.map(|(_, tokens)| tokens);
    run.decode_tokens = lines.eval.map(|(_, runs)| runs);
    run.answer_tokens = lines.eval.map(|(_, runs)| runs + 1);
    if let (Some(encode), Some(prefill)) = (s.encode, s.prefill) {
        run.ttft_ms = Some(encode + prefill);
        run.without_load_ms = s.decode.map(|decode| encode + prefill + decode);
    }
    run.text = Some(stdout.trim().to_owned());
}

/// What the lines say, milliseconds; slices and batches are summed.
#[derive(Debug, Default, PartialEq)]
struct Lines {
    load: Option<f64>,
    encode: Option<f64>,
    image_decode: Option<f64>,
    prompt_eval: Option<(f64, usize)>,
    eval: Option<(f64, usize)>,
}

/// Words before the times of a whole run, oldest first.
const MARKS: [&str; 3] = ["llama_print_timings:", "llama_perf_context_print:", "common_perf_print:"];

impl Lines {
    /// Prompt eval; `process_ms`: what the whole process took.
    fn prompt_eval_without_encode(&self, process_ms: Option<f64>) -> Option<f64> {
        let (prompt, _) = self.prompt_eval?;
        let encode = self.encode.unwrap_or(0.0);
        let sum = self.load.unwrap_or(0.0) + encode + prompt + self.eval.map_or(0.0, |(ms, _)| ms);
        let holds_encode = process_ms.is_some_and(|process| sum > process);
        Some(if holds_encode && prompt > encode { prompt - encode } else { prompt })
    }

    fn read(text: &str) -> Self {
        let mut lines = Lines::default();
        let add = |sum: &mut Option<f64>, ms: Option<f64>| {
            *sum = ms.map(|ms| sum.unwrap_or(0.0) + ms).or(*sum);
        };
        for line in text.lines() {
            if let Some(rest) =
                behind(line, "image slice encoded in").or(behind(line, "mtmd batch encoding done in"))
            {
                add(&mut lines.encode, milliseconds(rest));
            } else if let Some(rest) = behind(line, "image decoded (batch ") {
                add(&mut lines.image_decode, behind(rest, ") in").and_then(milliseconds));
            } else if let Some(rest) = MARKS.iter().find_map(|mark| behind(line, mark)) {
                let Some((name, values)) = rest.split_once('=') else { continue };
                let counted = || Some((milliseconds(values)?, count(behind(values, "/")?)?));
                match name.trim() {
                    "load time" => lines.load = milliseconds(values).or(lines.load),
                    "prompt eval time" => lines.prompt_eval = counted().or(lines.prompt_eval),
                    "eval time" => lines.eval = counted().or(lines.eval),
                    _ => {}
                }
            }
        }
        lines
    }
}

fn behind<'l>(line: &'l str, mark: &str) -> Option<&'l str> {
    line.split_once(mark).map(|(_, rest)| rest)
}

/// The number before the first `ms`.
fn milliseconds(text: &str) -> Option<f64> {
    let number = text.split_once("ms")?.0.trim().parse::<f64>().ok()?;
    (number.is_finite() && number >= 0.0).then_some(number)
}

fn count(text: &str) -> Option<usize> {
    text.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Lines of public transcripts; the files say which.
    const BATCHES: &str = include_str!("../../tests/data/llama-batches.txt");
    const TIMED: &str = include_str!("../../tests/data/llama-timed.txt");
    const OLD: &str = include_str!("../../tests/data/llama-old.txt");

    fn peer(more: &str) -> Peer {
        Peer::parse(&format!("llama.cpp=mtmd{more}")).unwrap()
    }

    #[test]
    fn slices_and_batches_of_public_transcripts_are_summed() {
        let lines = Lines::read(BATCHES);
        assert_eq!(lines.encode, Some(21944.0));
        assert_eq!(lines.image_decode, Some(197.0 + 576.0 + 335.0 + 412.0 + 428.0));
        assert_eq!(lines.load, Some(321.48));
        assert_eq!((lines.prompt_eval, lines.eval), (Some((1672.75, 62)), Some((16012.44, 505))));
        let timed = Lines::read(TIMED);
        assert_eq!((timed.encode, timed.image_decode), (Some(4.0), Some(3.0)));
        assert_eq!(timed.load, Some(4924.25));
        assert_eq!((timed.prompt_eval, timed.eval), (Some((487.36, 9)), Some((1992.43, 7))));
        let old = Lines::read(OLD);
        assert_eq!((old.encode, old.image_decode), (Some(2042.0), Some(1210.0)));
        assert_eq!((old.load, old.prompt_eval), (Some(907.71), Some((6294.68, 271))));
        assert_eq!(old.eval, Some((115_222.19, 510)));
    }

    #[test]
    fn totals_are_sums_of_what_does_not_nest() {
        let mut run = Run::default();
        told(&peer(""), " A cat. \n", BATCHES, &mut run);
        assert_eq!(
            run.without_load_ms,
            Some(21944.0 + 1672.75 + 16012.44),
            "prompt eval contains the picture's decoding"
        );
        assert_eq!((run.ttft_ms, run.text.as_deref()), (Some(21944.0 + 1672.75), Some("A cat.")));
        assert_eq!((run.decode_tokens, run.answer_tokens), (Some(505), Some(506)));
        // A process that took less than the sum of its parts waited for its words only behind the picture: encoding is in prompt
        // eval. Figures of a run of llama-cpp-python 0.3.36's sources, a 1.7B model, ms.
        let parts = "common_perf_print: load time = 1183.94 ms\nmtmd batch encoding done in 3523 ms\n\
                     common_perf_print: prompt eval time = 7680.70 ms / 176 tokens\ncommon_perf_print: eval time = 1658.43 ms / 31 runs\n";
        for (more, process, prefill) in
            [("", 11454.86, 7680.70 - 3523.0), ("", 14100.0, 7680.70), (" --no-warmup", 11454.86, 7680.70)]
        {
            let mut run = Run { with_load_ms: Some(process), ..Run::default() };
            told(&peer(more), "", parts, &mut run);
            assert!((run.stages.prefill.unwrap() - prefill).abs() < 1e-9);
            assert!((run.without_load_ms.unwrap() - (3523.0 + prefill + 1658.43)).abs() < 1e-9);
        }
        // Without the lines of pictures (an older verbosity) no total is made up.
        let mut run = Run::default();
        told(&peer(""), "", "llama_perf_context_print:        load time =      33.51 ms\n", &mut run);
        assert_eq!((run.stages.load, run.stages.encode, run.without_load_ms), (Some(33.51), None, None));
    }

    #[test]
    fn lines_that_are_cut_or_wrong_are_unknown() {
        for text in [
            "image slice encoded in",
            "image slice encoded in x ms",
            "image slice encoded in -5 ms",
            "image slice encoded in NaN ms",
            "image decoded (batch 1/1",
            "common_perf_print: eval time = 5.0 ms / x runs",
            "common_perf_print: eval time",
            "eval time = 5.0 ms / 7 runs",
        ] {
            assert_eq!(Lines::read(text), Lines::default(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_fail(text in "(image slice encoded in|common_perf_print:|eval time =|[0-9./ ms()\n=a-z-]){0,40}") {
            let lines = Lines::read(&text);
            prop_assert!(lines.encode.is_none_or(|ms| ms >= 0.0));
        }
    }
}
