//! What running a model will take, before it runs.

use margay::{
    KvType, LoadOptions, ModelSource, default_context,
    rooms::{
        graph::{Bindings, Program, Sym, memory, passes},
        model::ModelPrograms,
        observe::report::bytes,
        prompt::layout::PictureLayout,
    },
};
use serde::Serialize;
use std::num::NonZeroUsize;

/// Tokens that are kept together.
const BLOCK_TOKENS: usize = 64;

/// Predicted memory, bytes.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Memory {
    context_tokens: usize,
    weight_bytes: u64,
    text_arena_bytes: usize,
    encode_arena_bytes: Option<usize>,
    project_arena_bytes: Option<usize>,
    kv: &'static str,
    cache_bytes_per_token: usize,
    cache_bytes: usize,
    visual_bytes_per_picture: Option<usize>,
    total_bytes: u64,
}

impl Memory {
    /// Plans the programs as loading does: prompts in batches, logits for one row.
    pub(super) fn predict(
        source: &ModelSource,
        programs: &ModelPrograms,
        context: Option<NonZeroUsize>,
        kv: KvType,
        picture: Option<(&PictureLayout, Bindings)>,
    ) -> anyhow::Result<Self> {
        let config = &source.config;
        let context = context.map_or_else(|| default_context(config), NonZeroUsize::get);
        let batch = LoadOptions::default().batch.max(config.prefix_tokens()).clamp(1, context);
        let text = programs.text.with_outputs(|name| name == "logits")?;
        let limits =
            Bindings::new().with(Sym::Tokens, batch).with(Sym::Outputs, 1).with(Sym::Visual, context);
        let arena = |program: &Program, limits: &Bindings| -> anyhow::Result<usize> {
            Ok(memory::plan(&passes::optimize(program), limits)?.arena_bytes)
        };
        // Of a tower whose grid varies, for the given picture, or the largest.
        let most = || config.vision.as_ref().map_or_else(Bindings::new, |vision| vision.limits(context));
        let sizes = picture.as_ref().map_or_else(most, |(_, sizes)| *sizes);
        let stage = |program: &Option<Program>| program.as_ref().map(|p| arena(p, &sizes)).transpose();
        let text_arena_bytes = arena(&text, &limits)?;
        let (encode_arena_bytes, project_arena_bytes) = (stage(&programs.encode)?, stage(&programs.project)?);

        let text_config = &config.text;
        let cache = |tokens: usize| {
            let layer = kv.layer_bytes(text_config.kv_heads, text_config.head_dim, tokens);
            layer.and_then(|bytes| bytes.checked_mul(text_config.layers)).unwrap_or(usize::MAX)
        };
        let cache_bytes_per_token = cache(BLOCK_TOKENS) / BLOCK_TOKENS;
        let cache_bytes = cache(context);
        // Of pictures that are cut by their size, the given one, or a square one.
        let tokens = match (picture, &config.vision) {
            (Some((picture, _)), _) => Some(picture.visual_tokens()),
            (None, Some(vision)) if vision.varies() => Some(context),
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
        let project_arena_bytes = project_arena_bytes.map(|bytes| bytes + held);
        let visual_bytes_per_picture = tokens.map(|tokens| tokens * config.text.width * size_of::<f32>());
        let weight_bytes = super::parts::weights(source, programs).last().map_or(0, |all| all.bytes);
        let buffers =
            [Some(text_arena_bytes), encode_arena_bytes, project_arena_bytes, visual_bytes_per_picture];
        let buffers: usize = buffers.into_iter().flatten().sum();
        let total_bytes = weight_bytes.saturating_add(buffers as u64).saturating_add(cache_bytes as u64);
        Ok(Memory {
            context_tokens: context,
            weight_bytes,
            text_arena_bytes,
            encode_arena_bytes,
            project_arena_bytes,
            kv: kv.name(),
            cache_bytes_per_token,
            cache_bytes,
            visual_bytes_per_picture,
            total_bytes,
        })
    }

    /// For people.
    pub(super) fn describe(&self) -> String {
        let mut text = format!("memory predicted for {} tokens of context\n", self.context_tokens);
        let mut row = |what: &str, size: Option<u64>, how: String| {
            if let Some(size) = size {
                text += format!("  {what:<17}{:>10}  {how}", bytes(size)).trim_end();
                text += "\n";
            }
        };
        let size = |n: Option<usize>| n.map(|n| n as u64);
        row("weights", Some(self.weight_bytes), "as stored".to_owned());
        row(
            "KV cache",
            Some(self.cache_bytes as u64),
            format!("{} a token, {}", bytes(self.cache_bytes_per_token as u64), self.kv),
        );
        row("text buffers", size(Some(self.text_arena_bytes)), String::new());
        row("encode buffers", size(self.encode_arena_bytes), "from the first picture on".to_owned());
        row("project buffers", size(self.project_arena_bytes), "from the first picture on".to_owned());
        row("visual tokens", size(self.visual_bytes_per_picture), "a picture".to_owned());
        let with = if self.visual_bytes_per_picture.is_some() { "with one picture" } else { "" };
        row("total", Some(self.total_bytes), with.to_owned());
        text
    }
}
