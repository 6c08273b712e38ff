//! Vision and prompt on a GPU: what the guides say first of high latency. Margay computes on the CPU; this is its price only.

use super::{Case, Found, Look, Suggestion};
use margay_device::WhatIf;

pub(super) const GPU: Suggestion = Suggestion { id: "gpu", against: "high latency", look };

/// Least part of an answer's time that is worth a word.
const LEAST: f64 = 0.1;

fn look(case: &Case<'_>) -> Look {
    if case.pricing.is_none() {
        return Look::Unknown("it is priced by a device and a model: give --device and --model".to_owned());
    }
    let changes = [WhatIf::GpuEncode, WhatIf::GpuPrompt];
    let Some(gain) = case.simulated(&changes) else {
        return Look::Fine("the device has no GPU that somebody tells the speed of".to_owned());
    };
    if gain.after > gain.before * (1.0 - LEAST) {
        return Look::Fine(format!("{}, which wins too little", gain.by));
    }
    Look::Do(Found {
        what: "encode and evaluate the prompt on the GPU; Margay has no GPU backend, this says what one would be worth".to_owned(),
        evidence: format!("an answer takes {:.0} ms on the CPU", gain.before),
        gain: Some(gain),
        command: "margay simulate --device DEVICE --model MODEL --what-if gpu-encode,gpu-prompt".to_owned(),
    })
}
