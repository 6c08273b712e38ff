//! A model of a shape whose weights are random: a file to measure where the real weights are not at hand.
//!
//! Formats, sizes, layout and metadata are those of a converted checkpoint, so that loading, memory and the work of every
//! stage are too. Answers are noise. Weights are blocks drawn from a pool that the format's own encoder made of normal numbers
//! (deviation 1 / sqrt(inputs), so that values stay finite through any depth), norms are 1, biases 0.

use crate::{
    OnProgress, PackError, Progress, Recipe,
    output::{finish, jobs, writers},
    plan::{Columns, Planned, places},
    quantize::{file_type, quant},
    vocabulary,
};
use margay::Model;
use margay_device::Random;
use margay_file::TensorInfo;
use margay_graph::{Program, Role, Stage, WeightSpec};
use margay_model::{ModelConfig, RopeScaling};
use margay_prompt::text::{GgufVocab, PieceKind};
use margay_quant::{encode_into, storable};
use margay_tensor::{DType, Shape};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

/// Numbers of a chunk: whole blocks of every format.
const CHUNK: usize = 256;
/// Chunks that a weight's bytes are drawn from.
const POOL: usize = 256;
/// Chunks that are written at once: 64 of 256 float32 are 64 KiB.
const AT_ONCE: usize = 64;
/// Deviation of learned positions and the like, as transformers initializes them.
const SMALL: f64 = 0.02;
/// Score of pieces that no text is made of.
const UNUSED_SCORE: f32 = -1e9;
/// Sizes of a vocabulary that has a piece for every byte, at least.
const LEAST_VOCABULARY: usize = 260;

/// How to write it.
#[derive(Clone, Copy, Debug)]
pub struct RandomOptions<'a> {
    /// Which format each weight takes.
    pub recipe: &'a Recipe,
    /// The same seed writes the same bytes.
    pub seed: u64,
}

/// Writes a model of that configuration with random weights to `out`, and its vision side beside it as `mmproj-` and that
/// name. Gives the files and their sizes. Memory stays small: no tensor is ever there as a whole.
///
/// The vocabulary has as many tokens as the shape asks for: those of the model inside the program, so that a prompt is cut into
/// pieces of a few letters, and then numbers. None of them ends an answer.
///
/// # Errors
/// [`PackError`]; no file then stands under the final names. [`PackError::Shape`] for vocabularies without room for all bytes.
pub fn random(
    config: &ModelConfig,
    out: &Path,
    options: &RandomOptions<'_>,
    progress: OnProgress<'_>,
) -> Result<Vec<(PathBuf, u64)>, PackError> {
    let programs = config.programs()?;
    let vision: Vec<&Program> = programs.encode.iter().chain(&programs.project).collect();
    let vision = planned(config, &vision, options.recipe);
    let text = planned(config, &[&programs.text], options.recipe);
    let mut text_meta = margay_model::gguf::text_metadata(config);
    text_meta.insert("general.file_type", file_type(Some(options.recipe), Stage::Text, &text));
    vocabulary::put(&vocabulary(config.text.vocabulary)?, &mut text_meta);
    let vision_meta = margay_model::gguf::vision_metadata(config).map(|mut meta| {
        meta.insert("general.file_type", file_type(Some(options.recipe), Stage::Encode, &vision));
        (meta, vision)
    });
    let jobs = jobs(out, false, (text_meta, text), vision_meta);
    let mut writers = writers(&jobs, |planned| planned, None)?;
    let of = jobs.iter().map(|(_, _, tensors)| tensors.len()).sum();
    let of_bytes = jobs.iter().flat_map(|(_, _, tensors)| tensors).map(Planned::bytes).sum();
    let mut pools = Pools { seed: options.seed, made: BTreeMap::new() };
    let mut random = Random::new(options.seed);
    let (mut done, mut done_bytes) = (0, 0);
    for ((_, _, tensors), writer) in jobs.iter().zip(&mut writers) {
        for planned in tensors {
            let pool = pools.of(planned)?;
            let chunk = pool.len() / POOL;
            let mut left = planned.bytes() as usize;
            let mut buffer = Vec::with_capacity(chunk * AT_ONCE);
            while left > 0 {
                let step = Progress { tensor: planned.name(), done, of, done_bytes, of_bytes };
                if progress(&step).is_break() {
                    return Err(PackError::Stopped);
                }
                buffer.clear();
                for _ in 0..AT_ONCE {
                    buffer.extend_from_slice(&pool[random.below(POOL) * chunk..][..chunk]);
                }
                // What is left is whole blocks, as a chunk is.
                buffer.truncate(left);
                writer.write_bytes(planned.name(), &buffer)?;
                left -= buffer.len();
                done_bytes += buffer.len() as u64;
            }
            done += 1;
        }
    }
    finish(&jobs, writers)
}

/// Every weight with the format it takes; one that two programs read is stored once.
fn planned(config: &ModelConfig, programs: &[&Program], recipe: &Recipe) -> Vec<Planned> {
    let linear = matches!(config.text.rope_scaling, RopeScaling::Linear(_));
    let mut seen = BTreeSet::new();
    let all = programs.iter().flat_map(|program| places(program));
    let kept = all.filter(|(spec, _)| !(linear && spec.role == Role::RopeFactors));
    kept.filter(|(spec, _)| seen.insert(spec.name.clone()))
        .map(|(spec, mut place)| {
            let shape = stored_shape(&spec);
            place.rank = shape.rank();
            let dtype = storable(recipe.format(&spec.name, &place), shape.row()).0;
            let info = TensorInfo { dtype, shape };
            Planned { spec, info, place, per_channel: false, columns: Columns::All }
        })
        .collect()
}

/// The shape that a checkpoint gives a weight: patches are embedded by a convolution over square pieces of three colours, whose
/// kernel public runtimes read by its four axes.
fn stored_shape(spec: &WeightSpec) -> Shape {
    let (outputs, row) = (spec.shape.dims().first().copied().unwrap_or(0), spec.shape.row());
    let side = (row / 3).isqrt();
    if spec.role == Role::PatchEmbedding && spec.shape.rank() == 2 && 3 * side * side == row {
        return Shape::from([outputs, 3, side, side]);
    }
    spec.shape.clone()
}

/// Chunks of blocks by what they are made of.
struct Pools {
    seed: u64,
    made: BTreeMap<(&'static str, u64, u64), Vec<u8>>,
}

impl Pools {
    fn of(&mut self, planned: &Planned) -> Result<&[u8], PackError> {
        let dtype = planned.info.dtype;
        let (mean, deviation) = numbers(planned);
        let key = (dtype.name(), mean.to_bits(), deviation.to_bits());
        if !self.made.contains_key(&key) {
            let made = pool(dtype, mean, deviation, self.seed);
            self.made.insert(key, made.map_err(|source| quant(planned.name(), source))?);
        }
        Ok(&self.made[&key])
    }
}

fn pool(dtype: DType, mean: f64, deviation: f64, seed: u64) -> Result<Vec<u8>, margay_quant::QuantError> {
    let mut random = Random::new(seed ^ mean.to_bits() ^ deviation.to_bits().rotate_left(1));
    let values: Vec<f32> = (0..CHUNK * POOL).map(|_| (mean + deviation * random.normal()) as f32).collect();
    let mut blocks = vec![0; CHUNK / dtype.block_elements() * dtype.block_bytes() * POOL];
    encode_into(dtype, &values, &mut blocks)?;
    Ok(blocks)
}

/// Mean and deviation of a weight's numbers.
fn numbers(planned: &Planned) -> (f64, f64) {
    let shape = &planned.info.shape;
    let outputs = shape.dims().first().copied().unwrap_or(1).max(1);
    let inputs = (shape.elements().unwrap_or(1) / outputs).max(1);
    match planned.spec.role {
        Role::Norm | Role::RopeFactors => (1.0, 0.0),
        Role::Bias => (0.0, 0.0),
        Role::PositionEmbedding | Role::ClassEmbedding => (0.0, SMALL),
        _ if shape.rank() == 1 => (0.0, SMALL),
        _ => (0.0, (inputs as f64).sqrt().recip()),
    }
}

fn vocabulary(tokens: usize) -> Result<GgufVocab, PackError> {
    if tokens < LEAST_VOCABULARY {
        let what = format!("its vocabulary of {tokens} has no room for every byte ({LEAST_VOCABULARY})");
        return Err(PackError::Shape { what });
    }
    let mut vocab = Model::nano_source()?.tokenizer.to_gguf_vocab()?;
    // Answers are as long as they may be: the end is a word like any other.
    if let Some(end) = vocab.eos.take().map(|id| id as usize) {
        vocab.tokens[end] = format!("\u{2581}r{end}");
        vocab.token_types[end] = PieceKind::Normal as i32;
    }
    vocab.chat_template = None;
    vocab.tokens.truncate(tokens);
    vocab.scores.truncate(tokens);
    vocab.token_types.truncate(tokens);
    for id in vocab.tokens.len()..tokens {
        vocab.tokens.push(format!("\u{2581}r{id}"));
        vocab.scores.push(UNUSED_SCORE);
        vocab.token_types.push(PieceKind::Normal as i32);
    }
    Ok(vocab)
}

#[cfg(test)]
mod tests {
    use super::*;
    use margay::{AskOptions, Event, Image, LoadOptions, ModelSource};
    use margay_model::shapes::describe;
    use serde_json::Value;
    use std::ops::ControlFlow;

    fn golden(name: &str) -> ModelConfig {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name);
        let read = |file: &str| -> Option<Value> {
            Some(serde_json::from_slice(&std::fs::read(folder.join(file)).ok()?).unwrap())
        };
        describe(&read("config.json").unwrap(), read("preprocessor_config.json").as_ref()).unwrap()
    }

    fn write(config: &ModelConfig, out: &Path, recipe: &str, seed: u64) -> Vec<(PathBuf, u64)> {
        let recipe = Recipe::named(recipe).unwrap();
        random(config, out, &RandomOptions { recipe: &recipe, seed }, &mut |_| ControlFlow::Continue(()))
            .unwrap()
    }

    /// Structures of every kind: a tower with a class token, a resampler, tiles, pictures of their own size, a hybrid tower.
    #[test]
    fn a_random_model_of_any_structure_loads_and_answers_to_the_last_token() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["llava", "mobilevlm-v2", "smolvlm", "qwen2vl", "imp", "fastvlm", "llama"] {
            let mut config = golden(name);
            config.text.vocabulary = config.text.vocabulary.max(LEAST_VOCABULARY);
            // One folder each: a vision file is looked for beside its model.
            let out = folder.path().join(name).join("model.gguf");
            std::fs::create_dir(out.parent().unwrap()).unwrap();
            let files = write(&config, &out, "q8_0", 1);
            assert_eq!(files.len(), 1 + usize::from(config.vision.is_some()), "{name}");
            for (path, bytes) in &files {
                assert_eq!(std::fs::metadata(path).unwrap().len(), *bytes);
            }
            let options = LoadOptions { threads: Some(1), ..LoadOptions::default() };
            let model = Model::load_with(&out, &options).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert_eq!(model.config().family, config.family);
            let images: Vec<Image> =
                config.vision.iter().map(|_| Image::filled(40, 30, [9, 99, 200]).unwrap()).collect();
            let mut session = model.session().unwrap();
            let ask = AskOptions { max_tokens: 5, ..AskOptions::default() };
            let last = session.ask_with(&images, "What is this?", &ask).unwrap().last().unwrap();
            let Event::Done(report) = last.unwrap_or_else(|e| panic!("{name}: {e}")) else {
                panic!("{name}")
            };
            assert_eq!(report.tokens.len(), 5, "{name}: {report:?}");
        }
    }

    #[test]
    fn bytes_follow_from_the_seed_and_sizes_are_those_of_a_converted_checkpoint() {
        let folder = tempfile::tempdir().unwrap();
        let config = ModelConfig { ..golden("llava") };
        let config = ModelConfig {
            text: margay_model::TextConfig { vocabulary: 512, ..config.text.clone() },
            ..config
        };
        let read = |name: &str, seed| {
            let out = folder.path().join(name);
            write(&config, &out, "q4_0", seed);
            std::fs::read(out).unwrap()
        };
        let (one, again, other) = (read("a.gguf", 3), read("b.gguf", 3), read("c.gguf", 4));
        assert_eq!(one, again);
        assert!(one.len() == other.len() && one != other);
        let source = ModelSource::open(&folder.path().join("a.gguf"), None).unwrap();
        let programs = source.config.programs().unwrap();
        let recipe = Recipe::named("q4_0").unwrap();
        for program in programs.encode.iter().chain(&programs.project).chain([&programs.text]) {
            for (name, dtype) in recipe.formats(program) {
                assert_eq!(source.weights.info(&name).unwrap().dtype, dtype, "{name}");
            }
        }
        // Public runtimes read the kernel of patches by its axes.
        let kernel = source.weights.info("v.patch_embd.weight").unwrap().shape;
        assert!(matches!(kernel.dims(), [_, 3, height, width] if height == width), "{kernel:?}");
    }

    #[test]
    fn a_vocabulary_without_room_for_bytes_is_refused_and_nothing_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = golden("llama");
        config.text.vocabulary = 100;
        let recipe = Recipe::named("f16").unwrap();
        let options = RandomOptions { recipe: &recipe, seed: 0 };
        let out = folder.path().join("x.gguf");
        let refused = random(&config, &out, &options, &mut |_| ControlFlow::Continue(())).unwrap_err();
        assert!(refused.to_string().contains("100"), "{refused}");
        config.text.vocabulary = 512;
        let stopped = random(&config, &out, &options, &mut |_| ControlFlow::Break(())).unwrap_err();
        assert!(matches!(stopped, PackError::Stopped));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
