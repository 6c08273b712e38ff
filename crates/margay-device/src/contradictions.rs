//! Where the study contradicts itself, computed from the numbers that it prints.

use crate::{Device, Precision, Step, Study, Workload, device::Kind, error::DeviceError, per_charge};
use std::collections::BTreeMap;

/// Two numbers that should agree.
#[derive(Clone, Debug, PartialEq)]
pub struct Contradiction {
    /// Of what.
    pub what: String,
    /// What the paper says.
    pub says: String,
    /// What its other numbers give.
    pub gives: String,
}

/// All that were found. `workloads` are those of the study's runs, by id.
///
/// # Errors
/// [`DeviceError::Profile`] where the study's file lacks a number.
pub fn contradictions(
    study: &Study,
    device: &Device,
    workloads: &BTreeMap<String, Workload>,
) -> Result<Vec<Contradiction>, DeviceError> {
    let text = |key: &str| {
        let missing = || crate::error::profile("arxiv-2507.08505", format!("text.{key} is missing"));
        study.text.get(key).copied().ok_or_else(missing)
    };
    let mut found = vec![];
    let mut add = |what: &str, says: String, gives: String| {
        found.push(Contradiction { what: what.to_owned(), says, gives });
    };
    for run in &study.runs {
        let parts = run.encode + run.image.unwrap_or(0.0) + run.prompt + run.decode;
        let no_image = run.encode + run.prompt + run.decode;
        let (with_load, nested) = (no_image + run.load, run.prompt + run.decode);
        add(
            &format!("total of {}", run.name),
            format!("{:.1} ms", run.total),
            format!(
                "rows sum to {:.1} with load; {with_load:.1} without image decoding; prompt + generation {nested:.1}",
                parts + run.load
            ),
        );
    }
    // Totals of llama.cpp leave loading out, the others hold it.
    let with_load = |id: &str| study.run(id).map(|run| (run.name.clone(), run.load + run.total));
    let as_printed = |id: &str| study.run(id).map(|run| (run.name.clone(), run.total));
    let all = [
        with_load("llava-llama.cpp")?,
        as_printed("llava-mllm")?,
        with_load("mobilevlm-llama.cpp")?,
        as_printed("imp-mlc")?,
    ];
    let listed = |(name, ms): &(String, f64)| format!("{name} {ms:.1} ms");
    add(
        "totals, each with load",
        "two without it, two with it".to_owned(),
        all.iter().map(listed).collect::<Vec<_>>().join("; "),
    );
    let llava = study.run("llava-llama.cpp")?;
    let (tokens, each) = (text("llava_prompt_tokens")?, text("llava_ms_per_prompt_token")?);
    let decode = text("llava_tokens")? * text("llava_ms_per_token")?;
    add(
        "prompt evaluation of LLaVA on llama.cpp",
        format!("{:.1} s in Table 2", llava.prompt / 1e3),
        format!("{tokens} tokens x {each} ms = {:.1} s in the text", tokens * each / 1e3),
    );
    add(
        "token generation of LLaVA on llama.cpp",
        format!("{:.1} s in Table 2", llava.decode / 1e3),
        format!(
            "{} tokens x {} ms = {:.1} s",
            text("llava_tokens")?,
            text("llava_ms_per_token")?,
            decode / 1e3
        ),
    );
    let sum = text("llava_encode_s")? + (tokens * each + decode) / 1e3;
    add(
        "whole answer of LLaVA on llama.cpp",
        format!("over {} s in the text, {:.1} s in Table 2", text("llava_total_s")?, llava.total / 1e3),
        format!("the text's parts sum to {sum:.1} s"),
    );
    let mllm = study.run("llava-mllm")?;
    let mllm_decode = text("mllm_tokens")? * text("mllm_ms_per_token")?;
    add(
        "token generation of LLaVA on mllm",
        format!("{:.1} s in Table 2", mllm.decode / 1e3),
        format!(
            "{} tokens x {} ms = {:.1} s",
            text("mllm_tokens")?,
            text("mllm_ms_per_token")?,
            mllm_decode / 1e3
        ),
    );
    let whole = text("mllm_prompt_tokens")? + mllm.visual_tokens as f64;
    add(
        "a prompt token of LLaVA on mllm",
        format!("{} ms, 'severe delays'", text("mllm_ms_per_prompt_token")?),
        format!(
            "{:.1} ms with its {} visual tokens; llama.cpp takes {:.1}",
            mllm.prompt / whole,
            mllm.visual_tokens,
            llava.image.unwrap_or(0.0) / llava.visual_tokens as f64
        ),
    );
    if let Some(workload) = workloads.get(&mllm.id) {
        let rate = workload.work(Step::Encode).operations() / (mllm.encode / 1e3) / 1e9;
        let peak: f64 =
            device.units(Kind::Cpu).filter_map(|unit| unit.rate(Precision::F16)).sum::<f64>() / 1e9;
        add(
            "image encoding of LLaVA on mllm",
            format!("{} ms on the CPU", mllm.encode),
            format!("that is {rate:.0} GOP/s; all cores' peak in f16 is about {peak:.0}"),
        );
    }
    let mobile = study.run("mobilevlm-llama.cpp")?;
    add(
        "image preprocessing of MobileVLM",
        format!("{} s in the text", text("mobilevlm_preprocessing_s")?),
        format!(
            "encoding + decoding in Table 2: {:.2} s",
            (mobile.encode + mobile.image.unwrap_or(0.0)) / 1e3
        ),
    );
    add(
        "whole answer of MobileVLM",
        format!("{} s in the text, {:.1} s in Table 2", text("mobilevlm_total_s")?, mobile.total / 1e3),
        format!(
            "load, encoding, decoding, prompt and generation sum to {:.1} s",
            (mobile.load + mobile.encode + mobile.image.unwrap_or(0.0) + mobile.prompt + mobile.decode) / 1e3
        ),
    );
    for run in [llava, mllm] {
        add(
            &format!("answer of {}", run.name),
            format!("{} tokens generated", run.answer_tokens),
            format!("{} tokens long in Table 3", run.answer_length),
        );
    }
    add(
        "power on the same busy cores",
        format!("{} W of {}", llava.watts, llava.name),
        format!("{} W of {}, at 500 to 800% of the CPU too", mobile.watts, mobile.name),
    );
    let air = device.thermal.ambient_celsius.value;
    let resistances: Vec<String> =
        study.runs.iter().map(|run| format!("{:.1}", (run.celsius - air) / run.watts)).collect();
    add(
        "heat: kelvin above a room for a watt",
        "one phone".to_owned(),
        format!("{} K/W by run", resistances.join(", ")),
    );
    let imp = study.run("imp-mlc")?;
    let wh = text("battery_mah")? / 1e3 * text("volts_assumed")?;
    let llava_joules = llava.watts * llava.total / 1e3;
    let imp_joules = imp.watts * imp.total / 1e3;
    add(
        "battery at one LLaVA query a minute",
        format!("roughly {} h", text("hours_cpu")?),
        format!(
            "a query takes {:.0} s; without a pause {wh:.2} Wh / {} W = {:.2} h, {} queries",
            llava.total / 1e3,
            llava.watts,
            wh / llava.watts,
            per_charge(wh, llava_joules)
        ),
    );
    add(
        "battery at one Imp query a minute",
        format!("almost {} h", text("hours_gpu")?),
        format!(
            "{imp_joules:.1} J a query = {:.2} W, {:.1} h with nothing drawn between; {} queries",
            imp_joules / 60.0,
            wh * 60.0 / imp_joules,
            per_charge(wh, imp_joules)
        ),
    );
    add(
        "energy of a query, CPU to GPU",
        "'order of magnitude'; 8 h to 48 h is 6 times".to_owned(),
        format!(
            "{llava_joules:.0} J to {imp_joules:.1} J is {:.0} times, of a 7B and a 3B model",
            llava_joules / imp_joules
        ),
    );
    let watts = text("amperes")? * text("volts_assumed")?;
    add(
        "2.9 A of mllm (this one agrees)",
        format!("{} W", mllm.watts),
        format!("{} A x {} V = {watts:.1} W", text("amperes")?, text("volts_assumed")?),
    );
    Ok(found)
}
