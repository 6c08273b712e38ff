//! The study of VLMs on a phone (arXiv 2507.08505): its cells, what the simulator is fit to, and how it does on the others.

use crate::{Device, DeviceError, Engine, Run, Setup, Stated, Step, Workload, error::profile, simulate};
use serde::Deserialize;
use std::collections::BTreeMap;

/// The numbers of the paper inside the program.
const STUDY: &str = include_str!("../study/arxiv-2507.08505.toml");
/// The phone of the study.
pub const PHONE: &str = "oneplus-13r";
/// Rounds of fitting: cells depend on one another through heat.
const ROUNDS: usize = 6;
/// Halvings of each search.
const HALVINGS: usize = 40;

/// What the paper prints.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Study {
    /// Numbers of its text.
    pub text: BTreeMap<String, f64>,
    /// Columns of Table 2.
    #[serde(rename = "run")]
    pub runs: Vec<StudyRun>,
    /// What section 5.2 promises.
    #[serde(rename = "claim")]
    pub claims: Vec<Claim>,
}

/// A column of Table 2, with power and temperature of the text. Milliseconds.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "the paper's own words")]
pub struct StudyRun {
    pub id: String,
    pub name: String,
    pub shape: String,
    pub engine: String,
    pub visual_tokens: usize,
    pub prompt_tokens: usize,
    pub answer_tokens: usize,
    /// Of Table 3.
    pub answer_length: usize,
    pub load: f64,
    pub encode: f64,
    pub image: Option<f64>,
    pub prompt: f64,
    pub decode: f64,
    pub total: f64,
    pub watts: f64,
    pub celsius: f64,
    /// Its prompt evaluation contains encoding and image decoding.
    pub prompt_contains_encode: bool,
    /// Its total contains loading.
    pub total_contains_load: bool,
    /// What the paper does not say.
    pub assumed: String,
    /// Cells that the simulator is fit to.
    pub fit: Vec<Quantity>,
}

/// A promise of section 5.2.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "the paper's own words")]
pub struct Claim {
    pub what_if: String,
    pub place: String,
    pub says: String,
}

/// A row of Table 2, or a number of the text beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the paper's own words")]
pub enum Quantity {
    Load,
    Encode,
    Image,
    Prompt,
    Decode,
    Total,
    Watts,
    Celsius,
}

impl Quantity {
    /// All of them.
    pub const ALL: [Quantity; 8] = [
        Quantity::Load,
        Quantity::Encode,
        Quantity::Image,
        Quantity::Prompt,
        Quantity::Decode,
        Quantity::Total,
        Quantity::Watts,
        Quantity::Celsius,
    ];

    /// As the paper calls it, with its unit.
    pub fn name(self) -> &'static str {
        match self {
            Quantity::Load => "model load, ms",
            Quantity::Encode => "image encoding, ms",
            Quantity::Image => "image decoding, ms",
            Quantity::Prompt => "prompt evaluation, ms",
            Quantity::Decode => "token generation, ms",
            Quantity::Total => "total, ms",
            Quantity::Watts => "power, W",
            Quantity::Celsius => "temperature, C",
        }
    }
}

/// A cell beside what the simulator says of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Residual {
    /// Name of the column.
    pub run: String,
    /// Row.
    pub quantity: Quantity,
    /// As printed.
    pub paper: f64,
    /// By the simulator.
    pub simulated: f64,
    /// Whether the simulator was fit to it.
    pub fit: bool,
}

impl Study {
    /// The paper's numbers.
    ///
    /// # Errors
    /// [`DeviceError::Profile`] where the file breaks its rules.
    pub fn load() -> Result<Self, DeviceError> {
        toml::from_str(STUDY).map_err(|e| profile("arxiv-2507.08505", e.to_string()))
    }

    /// That column.
    ///
    /// # Errors
    /// [`DeviceError::Profile`] where there is none.
    pub fn run(&self, id: &str) -> Result<&StudyRun, DeviceError> {
        let run = self.runs.iter().find(|run| run.id == id);
        run.ok_or_else(|| profile("arxiv-2507.08505", format!("no run {id}")))
    }
}

impl StudyRun {
    /// As printed; `None` where the paper has no such cell.
    pub fn printed(&self, quantity: Quantity) -> Option<f64> {
        Some(match quantity {
            Quantity::Load => self.load,
            Quantity::Encode => self.encode,
            Quantity::Image => self.image?,
            Quantity::Prompt => self.prompt,
            Quantity::Decode => self.decode,
            Quantity::Total => self.total,
            Quantity::Watts => self.watts,
            Quantity::Celsius => self.celsius,
        })
    }

    /// The same quantity of a simulated run, counted as this column counts.
    pub fn simulated(&self, run: &Run, quantity: Quantity) -> f64 {
        let ms = |steps: &[Step]| steps.iter().map(|step| run.stage_seconds(*step)).sum::<f64>() * 1e3;
        let (encode, image) = (ms(&[Step::Encode, Step::Project]), ms(&[Step::PrefillImage]));
        let (text, decode, load) = (ms(&[Step::PrefillText]), ms(&[Step::Decode]), ms(&[Step::Load]));
        match quantity {
            Quantity::Load => load,
            Quantity::Encode => encode,
            Quantity::Image => image,
            Quantity::Prompt => image + text + if self.prompt_contains_encode { encode } else { 0.0 },
            Quantity::Decode => decode,
            Quantity::Total => {
                encode + image + text + decode + if self.total_contains_load { load } else { 0.0 }
            }
            Quantity::Watts => run.mean_watts(),
            Quantity::Celsius => run.peak_celsius,
        }
    }
}

/// The phone and the engines, as they are fit.
#[derive(Clone, Debug, PartialEq)]
pub struct Fitted {
    /// The phone.
    pub device: Device,
    /// By id.
    pub engines: BTreeMap<String, Engine>,
}

impl Fitted {
    /// As the files inside the program say.
    ///
    /// # Errors
    /// [`DeviceError`] where a file breaks its rules.
    pub fn shipped(study: &Study) -> Result<Self, DeviceError> {
        let engines = study.runs.iter().map(|run| Ok((run.engine.clone(), Engine::named(&run.engine)?)));
        let engines = engines.collect::<Result<_, DeviceError>>()?;
        Ok(Fitted { device: Device::named(PHONE)?, engines })
    }

    /// Simulates that column.
    ///
    /// # Errors
    /// [`DeviceError::Profile`] where its workload or engine is missing.
    pub fn run(&self, run: &StudyRun, workloads: &BTreeMap<String, Workload>) -> Result<Run, DeviceError> {
        let missing = || profile("arxiv-2507.08505", format!("no workload or engine of {}", run.id));
        let workload = workloads.get(&run.id).ok_or_else(missing)?;
        let engine = self.engines.get(&run.engine).ok_or_else(missing)?;
        simulate(&Setup::new(&self.device, engine), workload)
    }

    /// Every cell beside what is simulated.
    ///
    /// # Errors
    /// As [`Fitted::run`].
    pub fn residuals(
        &self,
        study: &Study,
        workloads: &BTreeMap<String, Workload>,
    ) -> Result<Vec<Residual>, DeviceError> {
        let mut rows = vec![];
        for run in &study.runs {
            let simulated = self.run(run, workloads)?;
            for quantity in Quantity::ALL {
                let Some(paper) = run.printed(quantity) else { continue };
                rows.push(Residual {
                    run: run.name.clone(),
                    quantity,
                    paper,
                    simulated: run.simulated(&simulated, quantity),
                    fit: run.fit.contains(&quantity),
                });
            }
        }
        Ok(rows)
    }

    /// Fits one number to each cell that the study's file names, all others held, in a few rounds.
    ///
    /// # Errors
    /// As [`Fitted::run`].
    pub fn calibrated(
        mut self,
        study: &Study,
        workloads: &BTreeMap<String, Workload>,
    ) -> Result<Self, DeviceError> {
        for _ in 0..ROUNDS {
            for run in &study.runs {
                for quantity in &run.fit {
                    self.fit(run, *quantity, workloads)?;
                }
            }
            self.inherit();
        }
        Ok(self)
    }

    fn fit(
        &mut self,
        run: &StudyRun,
        quantity: Quantity,
        workloads: &BTreeMap<String, Workload>,
    ) -> Result<(), DeviceError> {
        let paper = run.printed(quantity).unwrap_or_default();
        // Times fall when their number grows, watts and degrees rise with theirs.
        let rises = matches!(quantity, Quantity::Watts | Quantity::Celsius);
        let (mut low, mut high) = if rises { (1e-2, 1e2) } else { (1e-5, 1.0) };
        for _ in 0..HALVINGS {
            let middle = f64::sqrt(low * high);
            let mut tried = self.clone();
            tried.set(run, quantity, middle);
            let simulated = run.simulated(&tried.run(run, workloads)?, quantity);
            if (simulated > paper) == rises { high = middle } else { low = middle }
        }
        self.set(run, quantity, f64::sqrt(low * high));
        Ok(())
    }

    /// The one number that is fit to a cell. Watts are those of all clusters, by their factor to the first one.
    fn set(&mut self, run: &StudyRun, quantity: Quantity, value: f64) {
        let Some(engine) = self.engines.get_mut(&run.engine) else { return };
        let slot = match quantity {
            Quantity::Load => &mut engine.load,
            Quantity::Encode => &mut engine.encode.compute,
            Quantity::Image | Quantity::Prompt => &mut engine.prefill.compute,
            Quantity::Decode | Quantity::Total => &mut engine.decode.bandwidth,
            Quantity::Celsius => &mut self.device.thermal.node[0].kelvin_per_watt,
            Quantity::Watts => {
                let kind = engine.prefill.unit;
                let units: Vec<_> = self.device.unit.iter_mut().filter(|unit| unit.kind == kind).collect();
                let first = units.first().map_or(1.0, |unit| unit.active_watts.value);
                for unit in units {
                    unit.active_watts = unit.active_watts.with(unit.active_watts.value / first * value);
                }
                return;
            }
        };
        *slot = slot.with(value);
    }

    /// Numbers that the paper does not give of mllm and MLC-Imp are llama.cpp's.
    fn inherit(&mut self) {
        let Some(from) = self.engines.get("llama.cpp").cloned() else { return };
        let take = |slot: &mut Stated, stated: &Stated| *slot = slot.with(stated.value);
        if let Some(mllm) = self.engines.get_mut("mllm") {
            take(&mut mllm.encode.compute, &from.encode.compute);
            take(&mut mllm.decode.bandwidth, &from.decode.bandwidth);
        }
        if let Some(mlc) = self.engines.get_mut("mlc-imp") {
            take(&mut mlc.load, &from.load);
            take(&mut mlc.decode.bandwidth, &from.decode.bandwidth);
        }
    }
}
