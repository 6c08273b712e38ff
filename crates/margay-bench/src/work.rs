//! What a question asks of each stage, counted from the programs: the same on every machine, whatever the time it takes.

use crate::record::StageWork;
use margay::{
    Error, Image, KvType, Model, ModelSource, PromptInputs, prompt_batches,
    rooms::graph::{Bindings, Op, Program, Sym, cost},
};
use margay_observe::Part;
use std::{collections::BTreeMap, ops::Range};

/// A question as the text program is given it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Prompt {
    ids: Vec<i32>,
    prefix: usize,
    /// Tokens that are computed together.
    batch: usize,
    /// Whether batches end where a picture begins or ends.
    apart: bool,
    tiles: usize,
    projections: usize,
    /// Width and height, pixels.
    pictures: Vec<(u32, u32)>,
}

impl Prompt {
    /// As a new session of `model` computes it, which takes `batch` tokens together where the model does not ask for more.
    pub(crate) fn new(
        model: &Model,
        images: &[Image],
        words: &str,
        (batch, apart): (usize, bool),
    ) -> Result<Self, Error> {
        let PromptInputs { ids, pictures, prefix, .. } = model.source().prompt_inputs(images, words, &[])?;
        Ok(Prompt {
            ids,
            prefix,
            batch: batch.max(model.config().prefix_tokens()).clamp(1, model.context().max(1)),
            apart,
            tiles: pictures.iter().map(|picture| picture.tiles()).sum(),
            projections: pictures.iter().map(|picture| picture.projections()).sum(),
            pictures: images.iter().map(|image| (image.width(), image.height())).collect(),
        })
    }

    /// What each batch of the prefill is of.
    pub(crate) fn parts(&self) -> Vec<Part> {
        let part = |ids: &[i32]| match ids.iter().filter(|id| **id < 0).count() {
            0 => Part::Text,
            visual if visual == ids.len() => Part::Image,
            _ => Part::Mixed,
        };
        self.batches().map(|range| part(&self.ids[range])).collect()
    }

    fn batches(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        prompt_batches(&self.ids, self.batch, self.prefix, self.apart)
    }

    /// Tokens of it.
    pub(crate) fn tokens(&self) -> usize {
        self.ids.len()
    }

    fn visual(&self) -> usize {
        self.ids.iter().filter(|id| **id < 0).count()
    }
}

/// Operations and bytes of every stage of a question that is answered with `decoded` tokens behind the first.
pub(crate) fn work(
    source: &ModelSource,
    prompt: &Prompt,
    kv: KvType,
    decoded: usize,
) -> Result<Vec<StageWork>, Error> {
    let programs = source.config.programs()?;
    let mut all = vec![];
    if let (Some(tower), Some(projector), Some(vision), Some(&(width, height))) =
        (&programs.encode, &programs.project, &source.config.vision, prompt.pictures.first())
    {
        // Tiles are equal within a picture; pictures of several sizes are not counted.
        if prompt.pictures.iter().all(|size| *size == (width, height)) {
            let place = || format!("a picture of {width} x {height}");
            let sizes =
                vision.sizes(width, height).map_err(|source| Error::Image { place: place(), source })?;
            for (stage, program, times) in
                [("encode", tower, prompt.tiles), ("project", projector, prompt.projections)]
            {
                let (times, once) = (times as u64, cost(program, &sizes)?);
                let bytes = bytes_read(source, &[program], 1);
                all.push(StageWork {
                    stage: stage.to_owned(),
                    tokens: None,
                    operations: once.operations * times,
                    bytes: bytes * times,
                });
            }
        }
    }
    let text = |past: usize, tokens: usize| -> Result<(u64, u64), Error> {
        let sizes = Bindings::new()
            .with(Sym::Tokens, tokens)
            .with(Sym::Past, past)
            .with(Sym::Outputs, 1)
            .with(Sym::Visual, prompt.visual())
            .with(Sym::Prefix, prompt.prefix);
        let cost = cost(&programs.text, &sizes)?;
        let weights = bytes_read(source, &[&programs.text], tokens);
        Ok((cost.operations, weights + cost.cache_elements * kv.bits() as u64 / 8))
    };
    let mut sum = |stage: &str, calls: &mut dyn Iterator<Item = (usize, usize)>| -> Result<(), Error> {
        let mut stage = StageWork { stage: stage.to_owned(), tokens: Some(0), operations: 0, bytes: 0 };
        for (past, tokens) in calls {
            let (operations, bytes) = text(past, tokens)?;
            stage.tokens = stage.tokens.map(|sum| sum + tokens);
            stage.operations += operations;
            stage.bytes += bytes;
        }
        all.push(stage);
        Ok(())
    };
    let tokens = prompt.tokens();
    sum("prefill", &mut prompt.batches().map(|range| (range.start, range.len())))?;
    sum("decode", &mut (0..decoded).map(|at| (tokens + at, 1)))?;
    Ok(all)
}

/// Bytes of weights that so many rows read: of tables of which rows are looked up none, of experts as many as the rows
/// can choose.
pub fn bytes_read(source: &ModelSource, programs: &[&Program], rows: usize) -> u64 {
    let mut parts = BTreeMap::new();
    for program in programs {
        for node in program.nodes().iter().filter(|node| !matches!(node.op, Op::Embed { .. })) {
            let part = match &node.op {
                Op::Experts(op) => {
                    let of = program.value(node.inputs[1]).columns();
                    (rows.saturating_mul(op.used).min(of), of)
                }
                _ => (1, 1),
            };
            parts.extend(node.op.weights().into_iter().map(|id| (program.weight(id).name.as_str(), part)));
        }
    }
    let bytes = |name: &str| source.weights.info(name).and_then(|info| info.size_bytes().ok()).unwrap_or(0);
    parts.into_iter().map(|(name, (read, of))| (bytes(name) / of.max(1) * read) as u64).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use margay::LoadOptions;

    fn model() -> Model {
        Model::nano_with(&LoadOptions { context: Some(128), ..LoadOptions::default() }).unwrap()
    }

    #[test]
    fn a_batch_is_of_a_picture_of_text_or_of_both() {
        let ids = [1, 5, -1, -2, -3, -4, 7, 8];
        let prompt = |batch, apart| Prompt {
            ids: ids.to_vec(),
            prefix: 0,
            batch,
            apart,
            tiles: 1,
            projections: 1,
            pictures: vec![(9, 9)],
        };
        assert_eq!(prompt(2, false).parts(), [Part::Text, Part::Image, Part::Image, Part::Text]);
        assert_eq!(prompt(8, false).parts(), [Part::Mixed]);
        assert_eq!(prompt(3, false).parts(), [Part::Mixed, Part::Image, Part::Text]);
        assert_eq!(prompt(8, true).parts(), [Part::Text, Part::Image, Part::Text]);
    }

    #[test]
    fn work_is_that_of_the_lesson_by_hand() {
        let model = model();
        let image = Image::filled(30, 20, [9, 9, 200]).unwrap();
        let prompt = Prompt::new(&model, &[image], "What is this?", (512, false)).unwrap();
        let text = &model.config().text;
        let (t, decoded) = (prompt.tokens(), 3);
        let of = |decoded| work(model.source(), &prompt, KvType::F16, decoded).unwrap();
        let all = of(decoded);
        let stages: Vec<_> = all.iter().map(|stage| stage.stage.as_str()).collect();
        assert_eq!(stages, ["encode", "project", "prefill", "decode"]);
        // E = 192, F = 512, 5 layers, 768 words: products of a token, and of the head.
        let (e, f, l) = (text.width as u64, text.ffn as u64, text.layers as u64);
        let token = l * 2 * (4 * e * e + 3 * e * f);
        let head = 2 * e * text.vocabulary as u64;
        let t = t as u64;
        assert_eq!(all[2].tokens, Some(t as usize));
        assert_eq!(all[2].operations, t * token + head + l * 4 * t * t * e);
        let attention: u64 = (1..=3).map(|at| l * 4 * (t + at) * e).sum();
        assert_eq!(all[3].operations, 3 * (token + head) + attention);
        assert_eq!(of(0)[3].operations, 0);
        // A token of the cache is a key and a value of two bytes a number in each layer.
        let per_token = all[3].bytes - of(2)[3].bytes;
        let cache = l * 2 * 2 * e * (t + 3);
        assert_eq!(
            per_token - cache,
            bytes_read(model.source(), &[&model.config().programs().unwrap().text], 1)
        );
    }
}
