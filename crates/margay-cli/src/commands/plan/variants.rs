//! Ways to store and feed a model.

use crate::{
    Usage,
    memory::Memory,
    progress::Spinner,
    sketch::{PREFIX, Sizes, Sketch},
};
use margay::{
    KvType, LoadOptions,
    rooms::{
        graph::{Bindings, Program, Role},
        model::shapes::SHAPES,
        tensor::DType,
    },
};
use margay_device::{Quality, Variant, bits};
use margay_pack::Recipe;
use std::{collections::BTreeMap, num::NonZeroUsize};

/// Plain types beside the shipped recipes.
const TYPES: [DType; 6] = [DType::F16, DType::Q8_0, DType::Q6_K, DType::Q5_K, DType::Q4_K, DType::Q4_0];
/// Visual tokens at most, of models whose pictures become tokens by their size.
const MOST_TOKENS: [usize; 4] = [64, 256, 576, 1024];
/// A format counts for the bits of a side where it holds at least this part of its matrices.
const COUNTS: f64 = 0.05;

/// Types of keys and values that a plan may choose: those that kernels multiply as they are stored. What smaller ones cost in long
/// answers (`docs/sessions.md`) and in time is no part of a plan's quality and speed, so that it would always choose the smallest.
const PLANNED_KV: [KvType; 2] = [KvType::F16, KvType::Q8];

/// Percent of right answers that fewer visual tokens have to keep where nobody says it: else the fewest would always be chosen.
const LEAST_QUALITY: f64 = 95.0;

/// All of them.
///
/// `least_quality`: percent of right answers that has to be kept, where that is limited.
pub(super) fn all(
    model: &str,
    sizes: Sizes,
    context: NonZeroUsize,
    least_quality: Option<f64>,
) -> anyhow::Result<Vec<Variant>> {
    let quality = Quality::nano()?;
    let mut all = vec![];
    let spinner = Spinner::start("predicting memory");
    for base in sketches(model)? {
        let recipe = &base.recipe;
        for Taken { picture, sketch, percent, whole } in
            pictures(&base, sizes, (&quality, least_quality.unwrap_or(LEAST_QUALITY)))?
        {
            for kv in PLANNED_KV {
                let vision = sketch.config.vision.as_ref();
                let layout = vision.map(|v| v.layout(sizes.picture.0, sizes.picture.1)).transpose()?;
                let bound = vision.map(|v| v.sizes(sizes.picture.0, sizes.picture.1)).transpose()?;
                let predict = |options: &LoadOptions, sizes: Option<&Bindings>| sketch.memory(options, sizes);
                let taken = layout.as_ref().zip(bound);
                let memory =
                    Memory::predict(&sketch.config, &sketch.programs, &predict, Some(context), kv, taken)?;
                all.push(Variant {
                    model: sketch.config.name.clone(),
                    recipe: recipe.clone(),
                    formats: formats(&sketch),
                    kv: kv.name().to_owned(),
                    picture: picture.clone(),
                    workload: sketch.workload_with(kv, sizes, percent)?,
                    memory_bytes: Some(memory.most_bytes),
                    // What smaller pictures lose was not measured.
                    quality: kept(&quality, &sketch)
                        .zip(quality.kept_of_tokens(percent))
                        .map(|(bits, tokens)| bits * tokens / 100.0)
                        .filter(|_| whole),
                });
            }
        }
    }
    spinner.clear();
    Ok(all)
}

/// One model in one format, one in all, or several that begin alike.
fn sketches(model: &str) -> anyhow::Result<Vec<Sketch>> {
    let name = model.strip_prefix(PREFIX).unwrap_or(model);
    if name.contains(':') || std::path::Path::new(model).exists() {
        return Ok(vec![Sketch::named(model)?]);
    }
    let begin = |shape: &&margay::rooms::model::shapes::Shape| shape.name.starts_with(name);
    let exact: Vec<_> = SHAPES.iter().filter(|shape| shape.name == name).collect();
    let shapes = if exact.is_empty() { SHAPES.iter().filter(begin).collect() } else { exact };
    if shapes.is_empty() {
        let known: Vec<_> = SHAPES.iter().map(|shape| shape.name).collect();
        return Err(Usage(format!("no shape begins with {name:?}; shapes are {}", known.join(", "))).into());
    }
    let recipes = Recipe::shipped().map(|recipe| recipe.id);
    let recipes: Vec<String> = recipes.chain(TYPES.map(|dtype| dtype.name().to_owned())).collect();
    let mut all = vec![];
    for shape in shapes {
        let sketch = Sketch::named(shape.name)?;
        for recipe in &recipes {
            all.push(sketch.with_recipe(recipe)?);
        }
    }
    Ok(all)
}

/// A way to take pictures.
struct Taken {
    /// In words, with the option that asks for it.
    picture: String,
    sketch: Sketch,
    /// Of each tile's visual tokens that stay.
    percent: u32,
    /// Whether pictures have the size that the model gives them.
    whole: bool,
}

/// The model as it is; with a share of each tile's visual tokens, where it does not need them all; and with smaller pictures
/// where their size decides.
fn pictures(base: &Sketch, sizes: Sizes, (quality, least): (&Quality, f64)) -> anyhow::Result<Vec<Taken>> {
    let as_it_is = |picture: String| Taken { picture, sketch: base.clone(), percent: 100, whole: true };
    let Some(vision) = &base.config.vision else { return Ok(vec![as_it_is("none".to_owned())]) };
    let (width, height) = sizes.picture;
    let layout = vision.layout(width, height)?;
    let whole = layout.visual_tokens();
    let mut all = vec![as_it_is(format!("{whole} tokens"))];
    // Of a model that asks where in the picture a token lies, all have to stay.
    if base.config.text.rope_sections.is_none() {
        let good = |percent: &u32| quality.kept_of_tokens(*percent).is_some_and(|kept| kept >= least);
        for percent in quality.token_shares().into_iter().filter(good) {
            let stay = |tokens: usize| ((tokens * percent as usize + 50) / 100).max(1);
            let tokens = layout.with_tokens(stay).visual_tokens();
            let picture = format!("{tokens} tokens (--keep-image-tokens {percent}%)");
            all.push(Taken { percent, ..as_it_is(picture) });
        }
    }
    for most in MOST_TOKENS {
        let Some(less) = NonZeroUsize::new(most).and_then(|most| base.with_most_tokens(most)) else {
            continue;
        };
        let tokens = less.config.vision.as_ref().map(|v| v.layout(width, height)).transpose()?;
        let tokens = tokens.map_or(0, |layout| layout.visual_tokens());
        if tokens < whole {
            let picture = format!("{tokens} tokens (--max-image-tokens {most})");
            all.push(Taken { picture, sketch: less, percent: 100, whole: false });
        }
    }
    Ok(all)
}

/// What margay-nano kept at the fewest bits that a good part of each side is stored in; `None` where that was not measured.
fn kept(quality: &Quality, sketch: &Sketch) -> Option<f64> {
    let text = fewest(sketch, &sketch.programs.text)?;
    let vision = match &sketch.programs.encode {
        Some(encode) => fewest(sketch, encode)?,
        None => None,
    };
    quality.kept(text, vision)
}

/// `vision f16; text q4_0, output q6_k`: of each side the format that most of its matrices take, then roles that take others.
fn formats(sketch: &Sketch) -> String {
    let side = |name: &str, programs: &[&Program]| {
        let mut by_format: BTreeMap<&'static str, (f64, Vec<&'static str>)> = BTreeMap::new();
        for program in programs {
            for weight in program.weights().iter().filter(|weight| weight.role.is_matrix()) {
                let (elements, roles) = by_format.entry(sketch.format(program, weight).name()).or_default();
                *elements += weight.shape.elements().unwrap_or(0) as f64;
                if !roles.contains(&weight.role.name()) {
                    roles.push(weight.role.name());
                }
            }
        }
        let mut by_size: Vec<_> = by_format.into_iter().collect();
        by_size.sort_by(|a, b| b.1.0.total_cmp(&a.1.0));
        let words = by_size.iter().enumerate().map(|(at, (format, (_, roles)))| match at {
            0 => (*format).to_owned(),
            _ => format!("{format} in {}", roles.join(" ")),
        });
        format!("{name} {}", words.collect::<Vec<_>>().join(", "))
    };
    let vision: Vec<&Program> = sketch.programs.encode.iter().chain(&sketch.programs.project).collect();
    let text = side("text", &[&sketch.programs.text]);
    if vision.is_empty() { text } else { format!("{}; {text}", side("vision", &vision)) }
}

fn fewest(sketch: &Sketch, program: &Program) -> Option<Option<u32>> {
    let mut elements: BTreeMap<&'static str, (DType, f64)> = BTreeMap::new();
    let blocks = program
        .weights()
        .iter()
        .filter(|w| w.role.is_matrix() && !matches!(w.role, Role::Output | Role::TokenEmbedding));
    for weight in blocks {
        let dtype = sketch.format(program, weight);
        elements.entry(dtype.name()).or_insert((dtype, 0.0)).1 += weight.shape.elements().unwrap_or(0) as f64;
    }
    let all: f64 = elements.values().map(|(_, n)| n).sum();
    let mut fewest = None;
    for (dtype, _) in elements.into_values().filter(|(_, n)| *n >= COUNTS * all) {
        let here = bits(dtype)?;
        fewest = match (fewest, here) {
            (Some(a), Some(b)) => Some(u32::min(a, b)),
            (a, b) => a.or(b),
        };
    }
    Some(fewest)
}
