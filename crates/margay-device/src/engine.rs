//! An engine as numbers: where each stage runs, and which part of a unit's speed it reaches.

use crate::{DeviceError, Kind, Precision, Stated, Step, error::profile};
use serde::{Deserialize, Serialize};

/// The engines inside the program: id and file.
const ENGINES: &[(&str, &str)] = &[
    ("margay", include_str!("../engines/margay.toml")),
    ("llama.cpp", include_str!("../engines/llama.cpp.toml")),
    ("mllm", include_str!("../engines/mllm.toml")),
    ("mlc-imp", include_str!("../engines/mlc-imp.toml")),
    ("llm.npu", include_str!("../engines/llm.npu.toml")),
];

/// An engine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Engine {
    /// Name for people.
    pub name: String,
    /// What it stands for, and how its numbers were found.
    pub about: String,
    /// Of the storage's speed.
    pub load: Stated,
    /// Tower and projector.
    pub encode: Placement,
    /// Prompt: visual tokens and text.
    pub prefill: Placement,
    /// Token by token.
    pub decode: Placement,
}

/// Where a stage runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Placement {
    /// On which kind of unit.
    pub unit: Kind,
    /// In which numbers matrices are multiplied; attention is in f16, or what the unit has.
    pub precision: Precision,
    /// Part of the unit's operations a second that it reaches, 0 to 1.
    pub compute: Stated,
    /// Part of the bytes a second.
    pub bandwidth: Stated,
}

impl Engine {
    /// Ids of the engines inside the program.
    pub fn ids() -> impl Iterator<Item = &'static str> {
        ENGINES.iter().map(|(id, _)| *id)
    }

    /// The engine of that id.
    ///
    /// # Errors
    /// [`DeviceError::Unknown`] where there is none.
    pub fn named(id: &str) -> Result<Self, DeviceError> {
        let Some((id, text)) = ENGINES.iter().find(|(known, _)| *known == id) else {
            let known = Engine::ids().collect::<Vec<_>>().join(", ");
            return Err(DeviceError::Unknown { what: "engine", name: id.to_owned(), known });
        };
        Self::parse(id, text)
    }

    /// Reads an engine's file.
    ///
    /// # Errors
    /// [`DeviceError::Profile`] naming what is wrong.
    pub fn parse(name: &str, text: &str) -> Result<Self, DeviceError> {
        let engine: Engine = toml::from_str(text).map_err(|e| profile(name, e.to_string()))?;
        let placements = [&engine.encode, &engine.prefill, &engine.decode];
        let parts = placements.iter().flat_map(|p| [&p.compute, &p.bandwidth]).chain([&engine.load]);
        let wrong = parts.map(|part| part.value).find(|value| !(*value > 0.0 && *value <= 1.0));
        match wrong {
            Some(value) => Err(profile(name, format!("{value} is no part of a speed: above 0, at most 1"))),
            None => Ok(engine),
        }
    }

    /// Where that stage runs; loading has no place.
    pub fn placement(&self, step: Step) -> &Placement {
        match step {
            Step::Load | Step::Encode | Step::Project => &self.encode,
            Step::PrefillImage | Step::PrefillText => &self.prefill,
            Step::Decode => &self.decode,
        }
    }
}
