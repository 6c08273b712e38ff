//! Every stage's tensor, so that anyone can find the first one that drifts from the original.

use crate::{
    Error, Image, LoadOptions, ModelSource, backends, default_context,
    engine::{Projecting, compile, positions, prefix_of},
    packed::PackedFiles,
    session::{one_picture, raw_parts, too_long},
};
use margay_cpu::KvType;
use margay_graph::{Bindings, Cancel, InputData, StateOptions, Sym};
use margay_prompt::{
    image::preprocess,
    layout::{Layout, PictureLayout},
    text::Message,
};
use margay_tensor::{DType, Shape, Storage, Tensor};

/// How to trace.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TraceOptions {
    /// Backend and threads; the cache is always exact.
    pub load: LoadOptions,
    /// Use the prompt as it stands, without the chat template.
    pub raw_prompt: bool,
    /// Append so many greedy tokens (`greedy`).
    pub greedy: usize,
}

impl ModelSource {
    /// Runs the stages and gives each one's result as float32: `pixel_values` [N, 3, H, W] of N tiles, `encode`
    /// [N, P, C], `project` [N, V, E] (of N pictures, where tiles are stitched), `hidden.<layer>` [T, E] (0 is the
    /// embedding), `logits` [T, vocabulary]; and `input_ids` `[T]` (int32, -1 where a visual token stands). Where each
    /// picture keeps its size, the patches of all pictures follow each other: `pixel_values` [P, 3*patch*patch], `encode`
    /// [P, C], `project` [V, E].
    ///
    /// # Errors
    /// As [`crate::Session::ask`].
    pub fn trace(
        &self,
        images: &[Image],
        prompt: &str,
        options: &TraceOptions,
    ) -> Result<Vec<(String, Tensor)>, Error> {
        if prompt.trim().is_empty() && images.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        // Half precision would blur what is compared; 8 bits are what somebody wants to see.
        let kv = if options.load.kv == KvType::Q8 { KvType::Q8 } else { KvType::F32 };
        let load = LoadOptions { kv, ..options.load.clone() };
        let backend = backends::backend(&load)?;
        let programs = self.config.programs()?;
        let packed =
            if load.packed { PackedFiles::open(self, backend.as_ref()) } else { PackedFiles::default() };
        let cancel = Cancel::new();
        let mut out = vec![];
        let (mut visual, mut pictures) = (vec![], vec![]);
        if !images.is_empty() {
            let name = || self.config.name.clone();
            let vision = self.config.vision.as_ref().ok_or_else(|| Error::NoVision { model: name() })?;
            let (Some(encode), Some(project)) = (&programs.encode, &programs.project) else {
                return Err(Error::NoVision { model: name() });
            };
            let limits = vision.limits(load.context.unwrap_or_else(|| default_context(&self.config)));
            let mut encode = compile(self, backend.as_ref(), encode, &limits, &packed, &cancel)?;
            let mut project = Projecting::new(self, backend.as_ref(), project, &limits, &packed, &cancel)?;
            let (mut pixels, mut features, mut tiles): (Vec<f32>, Vec<f32>, _) = (vec![], vec![], 0usize);
            for image in images {
                let (layout, first) = (self.picture_layout(image)?, features.len());
                let mut cut = preprocess(&image.picture, &vision.image)
                    .map_err(|source| Error::Image { place: image.name.clone(), source })?;
                while let Some(tile) = cut.next() {
                    let tile = vision.tower.feed(&tile);
                    let inputs = tile.inputs(encode.program(), &tile.pixels);
                    encode.run(&tile.bindings, &inputs, None, &cancel)?;
                    let encoded = encode.output("encode").expect("invariant: encode has its output");
                    pixels.extend_from_slice(&tile.pixels);
                    tiles += 1;
                    features.extend_from_slice(encoded);
                    let stitch = layout.stitch();
                    if stitch.is_none() {
                        visual.extend_from_slice(project.run(&tile, encoded, None, &cancel)?);
                    } else if cut.len() == 0 {
                        visual.extend_from_slice(project.run(&tile, &features[first..], stitch, &cancel)?);
                    }
                }
                pictures.push(layout);
            }
            let (width, out_width) = (vision.tower.width(), self.config.text.width);
            if vision.varies() {
                // Tiles differ in size: their rows follow each other.
                let patches = features.len() / width;
                out.push(f32s("pixel_values", [patches, pixels.len() / patches], &pixels));
                out.push(f32s("encode", [patches, width], &features));
                out.push(f32s("project", [visual.len() / out_width, out_width], &visual));
            } else {
                let side = vision.tower.side();
                out.push(f32s("pixel_values", [tiles, 3, side, side], &pixels));
                out.push(f32s("encode", [tiles, features.len() / tiles / width, width], &features));
                let projections: usize = pictures.iter().map(PictureLayout::projections).sum();
                let tokens = visual.len() / projections / out_width;
                out.push(f32s("project", [projections, tokens, out_width], &visual));
            }
        }

        one_picture(&self.config, pictures.len())?;
        let parts = if options.raw_prompt {
            raw_parts(prompt, self.config.prompt.image_mark)
        } else {
            self.render(&[Message::user(images.len(), prompt)])?
        };
        let sequence = Layout::default().place(&self.tokenizer, &parts, &pictures)?;
        let ids = &sequence.ids;
        let (count, context) = (ids.len(), load.context.unwrap_or_else(|| default_context(&self.config)));
        if count == 0 {
            return Err(Error::EmptyPrompt);
        }
        if count.saturating_add(options.greedy) > context {
            return Err(too_long(&self.config, count, sequence.visual_tokens(), context));
        }

        let rows = count;
        let visual_rows = visual.len() / self.config.text.width;
        let prefix = prefix_of(&self.config, ids);
        let sizes = |tokens: usize| {
            Bindings::new()
                .with(Sym::Prefix, prefix)
                .with(Sym::Tokens, tokens)
                .with(Sym::Outputs, tokens)
                .with(Sym::Visual, visual_rows)
        };
        let mut text = compile(self, backend.as_ref(), &programs.text, &sizes(rows), &packed, &cancel)?;
        let mut state = text.new_state(StateOptions { capacity: count + options.greedy })?;
        let rows: Vec<i32> = (0..count as i32).collect();
        let (places, mut next_place) = sequence.places();
        let mut at = vec![];
        positions(text.program(), 0, count, &places, &mut at);
        let inputs =
            [InputData::I32(ids), InputData::I32(&at), InputData::I32(&rows), InputData::F32(&visual)];
        let inputs = &inputs[..text.program().inputs().len()];
        text.run(&sizes(count), inputs, Some(state.as_mut()), &cancel)?;

        let shown: Vec<i32> = ids.iter().map(|id| (*id).max(-1)).collect();
        out.push(i32s("input_ids", &shown));
        let names: Vec<String> = text.program().outputs().iter().map(|(name, _)| name.clone()).collect();
        for name in names {
            let values = text.output(&name).expect("invariant: outputs are there after a run");
            out.push(f32s(&name, [count, values.len() / count], values));
        }
        if options.greedy > 0 {
            let logits = text.output("logits").expect("invariant: the text program has logits");
            let mut next = crate::sample::greedy(&logits[logits.len() / count * (count - 1)..])?;
            let mut greedy = vec![next as i32];
            while greedy.len() < options.greedy {
                positions(text.program(), state.len(), 1, &[[next_place; 3]], &mut at);
                next_place += 1;
                let id = [next as i32];
                let inputs =
                    [InputData::I32(&id), InputData::I32(&at), InputData::I32(&[0]), InputData::F32(&visual)];
                let inputs = &inputs[..text.program().inputs().len()];
                text.run(&sizes(1), inputs, Some(state.as_mut()), &cancel)?;
                next = crate::sample::greedy(
                    text.output("logits").expect("invariant: the text program has logits"),
                )?;
                greedy.push(next as i32);
            }
            out.push(i32s("greedy", &greedy));
        }
        Ok(out)
    }
}

fn f32s<const N: usize>(name: &str, shape: [usize; N], values: &[f32]) -> (String, Tensor) {
    let tensor =
        Tensor::from_f32(Shape::from(shape), values).expect("invariant: the shape counts the values");
    (name.to_owned(), tensor)
}

fn i32s(name: &str, values: &[i32]) -> (String, Tensor) {
    let storage = Storage::build(values.len() * 4, |out| {
        for (bytes, value) in out.chunks_exact_mut(4).zip(values) {
            bytes.copy_from_slice(&value.to_le_bytes());
        }
    });
    let tensor =
        Tensor::new(DType::I32, Shape::from([values.len()]), storage).expect("invariant: one vector");
    (name.to_owned(), tensor)
}
