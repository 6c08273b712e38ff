//! What running a model will take, before it runs.

use crate::model::IMAGE_CACHE;
use margay::{
    KvType, LoadOptions, MemoryPrediction,
    rooms::{
        cpu::BLOCK_TOKENS,
        graph::{Bindings, MemoryUse},
        model::{ModelConfig, ModelPrograms},
        observe::report::bytes,
        prompt::layout::PictureLayout,
    },
};
use serde::Serialize;
use std::num::NonZeroUsize;

/// The prediction of a file or of a shape.
pub(crate) type Predict<'a> =
    &'a dyn Fn(&LoadOptions, Option<&Bindings>) -> Result<MemoryPrediction, margay::Error>;

/// Predicted memory, bytes.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Memory {
    context_tokens: usize,
    weight_bytes: u64,
    text_buffer_bytes: usize,
    encode_buffer_bytes: Option<usize>,
    project_buffer_bytes: Option<usize>,
    kv: &'static str,
    cache_bytes_per_token: usize,
    cache_bytes: usize,
    /// Of it, keys and values themselves: no scales, no blocks that are filled up.
    cache_number_bytes: u64,
    visual_bytes_per_picture: Option<usize>,
    /// Of pictures seen before, at most.
    image_cache_bytes: Option<usize>,
    pub total_bytes: u64,
    /// With as many pictures kept as there is room for: what a long conversation takes.
    pub most_bytes: u64,
}

fn weights(of: &MemoryUse) -> u64 {
    (of.packed_weight_bytes + of.mapped_weight_bytes) as u64
}

fn buffers(of: &MemoryUse) -> usize {
    of.arena_bytes + of.scratch_bytes
}

impl Memory {
    /// Plans the programs as loading does.
    pub(crate) fn predict(
        config: &ModelConfig,
        programs: &ModelPrograms,
        predict: Predict<'_>,
        context: Option<NonZeroUsize>,
        kv: KvType,
        picture: Option<(&PictureLayout, Bindings)>,
    ) -> anyhow::Result<Self> {
        let context = context.map_or_else(|| margay::default_context(config), NonZeroUsize::get);
        let options = LoadOptions { context: Some(context), kv, ..LoadOptions::default() };
        let sizes = picture.as_ref().map(|(_, sizes)| sizes);
        let MemoryPrediction { text, encode, project, cache_bytes, .. } = predict(&options, sizes)?;
        // Of pictures that are cut by their size, the given one, or a square one.
        let tokens = match (picture, &config.vision) {
            (Some((picture, _)), _) => Some(picture.visual_tokens()),
            (None, Some(vision)) if vision.varies() && vision.queries == 0 => Some(context),
            (None, Some(vision)) => Some(vision.layout(1, 1)?.visual_tokens()),
            (None, None) => None,
        };
        // The features of tiles that are stitched are there together, before they are projected.
        let held = match (picture, &config.vision) {
            (Some((picture, _)), Some(vision)) if picture.stitch().is_some() => {
                picture.tiles() * vision.tower.grid().pow(2) * vision.tower.width() * size_of::<f32>()
            }
            _ => 0,
        };
        let visual_bytes_per_picture = tokens.map(|tokens| tokens * config.text.width * size_of::<f32>());
        let stages = [Some(text), encode, project];
        let weight_bytes: u64 = stages.iter().flatten().map(weights).sum();
        let all_buffers: usize = held + stages.iter().flatten().map(buffers).sum::<usize>();
        let image_cache_bytes = tokens.map(|_| IMAGE_CACHE);
        let rest = all_buffers + cache_bytes + visual_bytes_per_picture.unwrap_or(0);
        Ok(Memory {
            context_tokens: context,
            weight_bytes,
            text_buffer_bytes: buffers(&text),
            encode_buffer_bytes: encode.as_ref().map(buffers),
            project_buffer_bytes: project.as_ref().map(|project| buffers(project) + held),
            kv: kv.name(),
            cache_bytes_per_token: cache_bytes / context.next_multiple_of(BLOCK_TOKENS),
            cache_bytes,
            cache_number_bytes: programs.text.cache_elements(context) * kv.bits() as u64 / 8,
            visual_bytes_per_picture,
            image_cache_bytes,
            total_bytes: weight_bytes.saturating_add(rest as u64),
            most_bytes: weight_bytes.saturating_add((rest + image_cache_bytes.unwrap_or(0)) as u64),
        })
    }

    /// For people.
    pub(crate) fn describe(&self) -> String {
        let mut text = format!("memory predicted for {} tokens of context\n", self.context_tokens);
        let mut row = |what: &str, size: Option<u64>, how: String| {
            if let Some(size) = size {
                text += format!("  {what:<17}{:>10}  {how}", bytes(size)).trim_end();
                text += "\n";
            }
        };
        let size = |n: Option<usize>| n.map(|n| n as u64);
        row("weights", Some(self.weight_bytes), "as the kernels hold them".to_owned());
        row("KV cache", Some(self.cache_bytes as u64), self.cache_words());
        row("text buffers", size(Some(self.text_buffer_bytes)), String::new());
        row("encode buffers", size(self.encode_buffer_bytes), "from the first picture on".to_owned());
        row("project buffers", size(self.project_buffer_bytes), "from the first picture on".to_owned());
        row("visual tokens", size(self.visual_bytes_per_picture), "a picture".to_owned());
        let with = if self.visual_bytes_per_picture.is_some() { "with one picture, " } else { "" };
        row("total", Some(self.total_bytes), format!("{with}{} B", self.total_bytes));
        if let Some(kept) = self.image_cache_bytes {
            row("kept pictures", Some(kept as u64), "at most, of those seen before".to_owned());
            row("in long use", Some(self.most_bytes), format!("with those, {} B", self.most_bytes));
        }
        text
    }

    fn cache_words(&self) -> String {
        let (all, numbers) = (self.cache_bytes as u64, self.cache_number_bytes);
        let each = bytes(self.cache_bytes_per_token as u64);
        let beside = if all == numbers { String::new() } else { format!(", {numbers} B of numbers") };
        format!("{each} a token, {}, {all} B{beside}", self.kv)
    }
}
