//! Models that need not be here: `shape:NAME[:TYPE]`, or a file, as numbers for inspecting, simulating and planning.

use crate::{Usage, hub, model};
use margay::{
    KvType, LoadOptions, MemoryPrediction, ModelSource, predict_shape,
    rooms::{
        cpu::BLOCK_TOKENS,
        graph::{Bindings, Program, WeightSpec},
        model::{
            ModelConfig, ModelPrograms,
            shapes::{SHAPES, shape},
        },
        tensor::DType,
    },
};
use margay_device::{Programs, Query, Workload};
use margay_pack::Recipe;
use std::{collections::BTreeMap, num::NonZeroUsize, path::Path};

/// What may stand before the name of a shape, and must where a file could be meant.
pub(crate) const PREFIX: &str = "shape:";
/// The model inside the program.
const NANO: &str = "margay-nano";
/// Format of a shape that names none.
const DEFAULT_TYPE: &str = "q4_0";
/// A model as its configuration and the formats of its weights.
#[derive(Clone, Debug)]
pub(crate) struct Sketch {
    pub config: ModelConfig,
    pub programs: ModelPrograms,
    /// What its weights are stored in, as `--recipe` takes it: a recipe or a type; or "as in the file".
    pub recipe: String,
    /// Where its numbers are published, of a shape.
    pub source: Option<String>,
    /// By program, as one table may stand in two.
    formats: [BTreeMap<String, DType>; 3],
}

/// Sizes of a question.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub picture: (u32, u32),
    pub prefix: usize,
    pub prompt: usize,
    pub answer: usize,
}

impl Sketch {
    /// A shape with a type or recipe behind a colon, or a file.
    pub(crate) fn named(text: &str) -> anyhow::Result<Self> {
        let name = text.strip_prefix(PREFIX).unwrap_or(text);
        let (base, typed) = name.split_once(':').unwrap_or((name, DEFAULT_TYPE));
        if let Some(shape) = shape(base) {
            let recipe = Recipe::named(typed).map_err(|e| Usage(e.to_string()))?;
            return Self::new(shape.config()?, &recipe, typed, Some(shape.source()));
        }
        if text == NANO {
            return Self::of_source(&model::source(None, None)?);
        }
        if text.starts_with(PREFIX) || (!text.starts_with(hub::PREFIX) && !Path::new(text).exists()) {
            let known: Vec<_> = SHAPES.iter().map(|shape| shape.name).collect();
            let what = format!("there is no file and no shape {base:?}; shapes are {}", known.join(", "));
            return Err(Usage(what).into());
        }
        let path = hub::local(Path::new(text))?;
        Self::of_source(&model::source(Some(&path), None)?)
    }

    /// A shape's model in the formats of a recipe that is called `words`.
    ///
    /// # Errors
    /// Where there is no such shape.
    pub(crate) fn of_shape(name: &str, recipe: &Recipe, words: &str) -> anyhow::Result<Self> {
        let shape = shape(name).ok_or_else(|| Usage(format!("there is no shape {name:?}")))?;
        Self::new(shape.config()?, recipe, words, Some(shape.source()))
    }

    /// The same model in other formats, those of the recipe or type of that name.
    pub(crate) fn with_recipe(&self, name: &str) -> anyhow::Result<Self> {
        Self::new(self.config.clone(), &Recipe::named(name)?, name, self.source.clone())
    }

    /// The same model, whose pictures become at most so many tokens; `None` where their size does not decide.
    pub(crate) fn with_most_tokens(&self, tokens: NonZeroUsize) -> Option<Self> {
        let vision = self.config.vision.clone()?.with_most_tokens(tokens)?;
        Some(Sketch { config: ModelConfig { vision: Some(vision), ..self.config.clone() }, ..self.clone() })
    }

    pub(crate) fn of_source(source: &ModelSource) -> anyhow::Result<Self> {
        let programs = source.config.programs()?;
        let formats = parts(&programs).map(|program| {
            let weights = program.iter().flat_map(|program| program.weights());
            weights.filter_map(|w| Some((w.name.clone(), source.loaded_format(&w.name)?))).collect()
        });
        let (config, recipe) = (source.config.clone(), "as in the file".to_owned());
        Ok(Sketch { config, programs, recipe, source: None, formats })
    }

    fn new(config: ModelConfig, recipe: &Recipe, name: &str, source: Option<String>) -> anyhow::Result<Self> {
        let programs = config.programs()?;
        let formats = parts(&programs)
            .map(|program| program.map_or_else(BTreeMap::new, |program| recipe.formats(program)));
        Ok(Sketch { config, programs, recipe: name.to_owned(), source, formats })
    }

    /// `llava-1.5-7b:q4_0`.
    pub(crate) fn name(&self) -> String {
        format!("{}:{}", self.config.name, self.recipe)
    }

    /// In what that weight is stored.
    pub(crate) fn format(&self, program: &Program, spec: &WeightSpec) -> DType {
        self.formats[program.stage() as usize].get(&spec.name).copied().unwrap_or(DType::F32)
    }

    /// What Margay allocates for it.
    pub(crate) fn memory(
        &self,
        options: &LoadOptions,
        picture: Option<&Bindings>,
    ) -> Result<MemoryPrediction, margay::Error> {
        predict_shape(&self.config, &|program, spec| self.format(program, spec), options, picture)
    }

    /// What a question costs.
    pub(crate) fn workload(&self, kv: KvType, sizes: Sizes) -> anyhow::Result<Workload> {
        self.workload_with(kv, sizes, 100)
    }

    /// The same where so many percent of each tile's visual tokens stay.
    pub(crate) fn workload_with(&self, kv: KvType, sizes: Sizes, percent: u32) -> anyhow::Result<Workload> {
        let share = f64::from(percent) / 100.0;
        let mut query = Query::text(sizes.prompt, sizes.answer);
        if let Some(vision) = &self.config.vision {
            let (width, height) = sizes.picture;
            let layout = vision.layout(width, height)?;
            query = Query {
                picture: vision.sizes(width, height)?,
                tiles: layout.tiles(),
                projections: layout.projections(),
                visual_tokens: layout
                    .with_tokens(|tokens| ((tokens as f64 * share).round() as usize).clamp(1, tokens.max(1)))
                    .visual_tokens(),
                prefix_tokens: sizes.prefix.min(sizes.prompt),
                ..query
            };
        }
        let ModelPrograms { encode, project, text } = &self.programs;
        let vision = encode.as_ref().zip(project.as_ref()).map(|(tower, projector)| [tower, projector]);
        let format = |program: &Program, spec: &WeightSpec| self.format(program, spec);
        let head = self.config.text.head_dim;
        let block = kv.layer_bytes(1, head, BLOCK_TOKENS).unwrap_or(0);
        let element = block as f64 / (2 * head.max(1) * BLOCK_TOKENS) as f64;
        Ok(Workload::count(&self.name(), Programs { vision, text }, &format, element, query)?)
    }
}

/// In the order of [`margay::rooms::graph::Stage`].
fn parts(programs: &ModelPrograms) -> [Option<&Program>; 3] {
    [programs.encode.as_ref(), programs.project.as_ref(), Some(&programs.text)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use margay::rooms::graph::Stage;

    #[test]
    fn formats_lie_in_the_order_of_stages() {
        assert_eq!(Stage::ALL.map(|stage| stage as usize), [0, 1, 2]);
        let sketch = Sketch::named("shape:smolvlm-256m:mobile-int4").unwrap();
        for program in parts(&sketch.programs).into_iter().flatten() {
            for spec in program.weights() {
                assert!(sketch.formats[program.stage() as usize].contains_key(&spec.name), "{}", spec.name);
            }
        }
        assert_eq!(sketch.name(), "smolvlm-256m:mobile-int4");
        assert!(Sketch::named("llava-2").unwrap_err().to_string().contains("llava-1.5-7b"));
        assert!(Sketch::named("phi-2:q9").unwrap_err().to_string().contains("q9"));
    }

    #[test]
    fn a_cache_without_scales_takes_what_the_lesson_says_and_memory_is_what_margay_allocates() {
        let sketch = Sketch::named("llava-1.5-7b").unwrap();
        let of = |kv| {
            let options = LoadOptions { context: Some(2048), kv, ..LoadOptions::default() };
            sketch.memory(&options, None).unwrap().cache_bytes
        };
        let layers = |kv: KvType| 32 * kv.layer_bytes(32, 128, 2048).unwrap();
        assert_eq!(layers(KvType::F16), 1_073_741_824);
        // Half, and 4 bytes for the key and for the value of each token, layer and head.
        assert_eq!(layers(KvType::Q8), 536_870_912 + 2 * 4 * 2048 * 32 * 32);
        for kv in [KvType::F16, KvType::Q8] {
            // Beside them, partial sums of attention that is split among threads.
            let beside = of(kv) - layers(kv);
            assert!(beside < 4 << 20, "{beside}");
        }
        let workload = sketch
            .workload(KvType::F16, Sizes { picture: (336, 336), prefix: 0, prompt: 29, answer: 69 })
            .unwrap();
        assert_eq!(workload.cache_bytes_per_token, 524_288.0);
    }
}
