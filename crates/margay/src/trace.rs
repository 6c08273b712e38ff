//! Every stage's tensor, so that anyone can find the first one that drifts from the original.

use crate::{
    Error, Image, LoadOptions, ModelSource, backends, default_context,
    engine::{Projecting, compile, positions, prefix_of},
    packed::PackedFiles,
    session::{one_picture, raw_parts, too_long},
};
use margay_cpu::KvType;
use margay_graph::{Backend, Bindings, Cancel, Executable, InputData, State, StateOptions, Sym, passes};
use margay_model::ModelPrograms;
use margay_prompt::{
    image::preprocess,
    layout::{Layout, PictureLayout, Sequence},
    text::Message,
};
use margay_tensor::{DType, Shape, Storage, Tensor};

/// Tokens a call where blocks of the cache are rewritten between calls: as many as a block.
const CLOSED_TOKENS: usize = 64;

/// Prompts are computed by programs with room for a multiple of so many tokens, so that few are compiled.
const ROOM_TOKENS: usize = 64;

/// Tokens of a text whose logits are computed together: 512 rows of a vocabulary of 150 thousand take 300 MB.
const SCORED_TOKENS: usize = 512;

/// How to trace.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TraceOptions {
    /// Backend and threads. No token is dropped.
    pub load: LoadOptions,
    /// Use the prompt as it stands, without the chat template.
    pub raw_prompt: bool,
    /// Append so many greedy tokens (`greedy`).
    pub greedy: usize,
    /// How keys and values are kept; `None` for the type in `load`, of which half precision becomes float32.
    pub kv: Option<KvType>,
}

impl ModelSource {
    /// Runs the stages and gives each one's result: [`Tracer::trace`] of a tracer that is used once.
    ///
    /// # Errors
    /// As [`crate::Session::ask`].
    pub fn trace(
        &self,
        images: &[Image],
        prompt: &str,
        options: &TraceOptions,
    ) -> Result<Vec<(String, Tensor)>, Error> {
        Tracer::new(self, options)?.trace(images, prompt)
    }
}

/// Computes the stages of prompts and keeps what it compiled from one to the next.
pub struct Tracer<'s> {
    source: &'s ModelSource,
    options: TraceOptions,
    backend: Box<dyn Backend>,
    packed: PackedFiles,
    programs: ModelPrograms,
    vision: Option<(Box<dyn Executable>, Projecting)>,
    text: Option<Text>,
    cancel: Cancel,
}

/// A compiled text program and the prompt that its cache holds.
struct Text {
    executable: Box<dyn Executable>,
    /// Tokens it computes at once.
    room: usize,
    state: Box<dyn State>,
    /// Visual rows of the prompt, [V, E].
    visual: Vec<f32>,
    visual_rows: usize,
    prefix: usize,
    /// Where the token behind the prompt stands.
    next_place: i32,
    /// Logits of the prompt's last token, [vocabulary].
    last: Vec<f32>,
}

/// Visual rows of a prompt's pictures, and what each became in it.
#[derive(Default)]
struct Seen {
    visual: Vec<f32>,
    pictures: Vec<PictureLayout>,
}

impl<'s> Tracer<'s> {
    /// Tokens for which there is room behind every prompt.
    pub const MOST_ANSWER_TOKENS: usize = 64;

    /// For all stages.
    ///
    /// # Errors
    /// [`Error::Unknown`] for a backend or an instruction set that does not exist, [`Error::Option`].
    pub fn new(source: &'s ModelSource, options: &TraceOptions) -> Result<Self, Error> {
        // Half precision, which nobody may have asked for, would blur what is compared.
        let kv = options.kv.unwrap_or(match options.load.kv {
            KvType::F16 => KvType::F32,
            kind => kind,
        });
        let load = LoadOptions { kv, ..options.load.clone() };
        let backend = backends::backend(&load)?;
        let programs = source.config.programs()?;
        // Packed files hold the stored weights, not those quantized at load.
        let packed = if load.packed && source.formats.is_empty() {
            PackedFiles::open(source, backend.as_ref())
        } else {
            PackedFiles::default()
        };
        let options = TraceOptions { load, ..options.clone() };
        let cancel = Cancel::new();
        Ok(Tracer { source, options, backend, packed, programs, vision: None, text: None, cancel })
    }

    /// For logits alone: traces then hold no `hidden`, and memory for one layer is enough.
    ///
    /// # Errors
    /// As [`Tracer::new`].
    pub fn of_logits(source: &'s ModelSource, load: &LoadOptions) -> Result<Self, Error> {
        let options = TraceOptions { load: load.clone(), ..TraceOptions::default() };
        let mut tracer = Self::new(source, &options)?;
        tracer.programs.text = passes::optimize(&tracer.programs.text.with_outputs(|name| name == "logits")?);
        Ok(tracer)
    }

    /// The flag that stops it, from any thread; what was running then fails.
    pub fn cancel(&self) -> Cancel {
        self.cancel.clone()
    }

    /// The model.
    pub fn source(&self) -> &'s ModelSource {
        self.source
    }

    /// Runs the stages and gives each one's result as float32: `pixel_values` [N, 3, H, W] of N tiles, `encode`
    /// [N, P, C], `project` [N, V, E] (of N pictures, where tiles are stitched), `hidden.<layer>` [T, E] (0 is the
    /// embedding), `logits` [T, vocabulary]; and `input_ids` `[T]` (int32, -1 where a visual token stands). Where each
    /// picture keeps its size, the patches of all pictures follow each other: `pixel_values` [P, 3*patch*patch], `encode`
    /// [P, C], `project` [V, E].
    ///
    /// # Errors
    /// As [`crate::Session::ask`].
    pub fn trace(&mut self, images: &[Image], prompt: &str) -> Result<Vec<(String, Tensor)>, Error> {
        if prompt.trim().is_empty() && images.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        let mut out = vec![];
        let seen = if images.is_empty() { Seen::default() } else { self.see(images, &mut out)? };
        let sequence = self.sequence(images.len(), prompt, &seen.pictures)?;
        self.read(&sequence, seen.visual, &mut out)?;
        if self.options.greedy > 0 {
            let greedy = self.go_on(self.options.greedy, &[])?;
            out.push(i32s("greedy", &greedy.iter().map(|id| *id as i32).collect::<Vec<_>>()));
        }
        Ok(out)
    }

    /// The greedy answer to the prompt that was traced last: at most `most` tokens, and [`Tracer::MOST_ANSWER_TOKENS`],
    /// without the one that ends it.
    ///
    /// # Errors
    /// [`Error::Backend`], [`Error::NotFinite`], [`Error::EmptyPrompt`] before the first trace.
    pub fn answer(&mut self, most: usize) -> Result<Vec<u32>, Error> {
        let stops = self.source.tokenizer.stop_ids().to_vec();
        self.go_on(most.min(Self::MOST_ANSWER_TOKENS), &stops)
    }

    /// Logits behind each of some tokens that follow the prompt that was traced last, [tokens, vocabulary]; at most
    /// [`Tracer::MOST_ANSWER_TOKENS`] tokens.
    ///
    /// # Errors
    /// [`Error::Backend`], also with more tokens; [`Error::EmptyPrompt`] before the first trace.
    pub fn behind(&mut self, tokens: &[u32]) -> Result<Vec<f32>, Error> {
        let text = self.text.as_mut().ok_or(Error::EmptyPrompt)?;
        let prompt = text.state.len();
        let ids: Vec<i32> = tokens.iter().map(|id| *id as i32).collect();
        let mut logits = vec![];
        for (at, ids) in ids.chunks(text.room).enumerate() {
            let first = text.next_place + (at * text.room) as i32;
            let places: Vec<[i32; 3]> = (first..).take(ids.len()).map(|place| [place; 3]).collect();
            text.run(ids, &places, ids.len(), &self.cancel)?;
            logits.extend_from_slice(text.logits());
        }
        text.state.truncate(prompt);
        Ok(logits)
    }

    /// Calls `each` with the place and the logits `[vocabulary]` of every token of a text, in order. The ids are taken as
    /// they are; the first one is where the context begins.
    ///
    /// # Errors
    /// [`Error::EmptyPrompt`], [`Error::PromptTooLong`] beyond the context, [`Error::Backend`].
    pub fn text_logits(&mut self, ids: &[u32], each: &mut dyn FnMut(usize, &[f32])) -> Result<(), Error> {
        if ids.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        let context = self.context();
        if ids.len() > context {
            return Err(too_long(&self.source.config, ids.len(), 0, context));
        }
        let batch = SCORED_TOKENS.min(ids.len());
        self.prepare_text(batch, ids.len())?;
        let text = self.text.as_mut().expect("invariant: it was prepared");
        (text.visual, text.visual_rows, text.prefix) = (vec![], 0, 0);
        let ids: Vec<i32> = ids.iter().map(|id| *id as i32).collect();
        let mut at = 0;
        for ids in ids.chunks(batch) {
            text.run(ids, &[], ids.len(), &self.cancel)?;
            let logits = text.logits();
            for row in logits.chunks_exact(logits.len() / ids.len()) {
                each(at, row);
                at += 1;
            }
        }
        Ok(())
    }

    /// How keys and values are kept.
    pub fn kv(&self) -> KvType {
        self.options.load.kv
    }

    /// Tokens of context.
    pub fn context(&self) -> usize {
        self.options.load.context.unwrap_or_else(|| default_context(&self.source.config))
    }

    /// Tower and projector over all pictures.
    fn see(&mut self, images: &[Image], out: &mut Vec<(String, Tensor)>) -> Result<Seen, Error> {
        let source = self.source;
        let name = || source.config.name.clone();
        let vision = source.config.vision.as_ref().ok_or_else(|| Error::NoVision { model: name() })?;
        if self.vision.is_none() {
            let (Some(encode), Some(project)) = (&self.programs.encode, &self.programs.project) else {
                return Err(Error::NoVision { model: name() });
            };
            let (backend, limits) = (self.backend.as_ref(), vision.limits(self.context()));
            let encode = compile(source, backend, encode, &limits, &self.packed, &self.cancel)?;
            let project = Projecting::new(source, backend, project, &limits, &self.packed, &self.cancel)?;
            self.vision = Some((encode, project));
        }
        let (encode, project) = self.vision.as_mut().expect("invariant: it was compiled");
        let mut seen = Seen::default();
        let (mut pixels, mut features, mut tiles): (Vec<f32>, Vec<f32>, _) = (vec![], vec![], 0usize);
        for image in images {
            let (layout, first) = (source.picture_layout(image)?, features.len());
            let mut cut = preprocess(image.picture()?, &vision.image)
                .map_err(|source| Error::Image { place: image.name.clone(), source })?;
            while let Some(tile) = cut.next() {
                let tile = vision.tower.feed(&tile);
                let inputs = tile.inputs(encode.program(), &tile.pixels);
                encode.run(&tile.bindings, &inputs, None, &self.cancel)?;
                let encoded = encode.output("encode").expect("invariant: encode has its output");
                pixels.extend_from_slice(&tile.pixels);
                tiles += 1;
                features.extend_from_slice(encoded);
                let stitch = layout.stitch();
                if stitch.is_none() {
                    seen.visual.extend_from_slice(project.run(&tile, encoded, None, &self.cancel)?);
                } else if cut.len() == 0 {
                    let whole = &features[first..];
                    seen.visual.extend_from_slice(project.run(&tile, whole, stitch, &self.cancel)?);
                }
            }
            seen.pictures.push(layout);
        }
        let (visual, width, out_width) = (&seen.visual, vision.tower.width(), source.config.text.width);
        if vision.varies() {
            // Tiles differ in size: their rows follow each other.
            let patches = features.len() / width;
            out.push(f32s("pixel_values", [patches, pixels.len() / patches], &pixels));
            out.push(f32s("encode", [patches, width], &features));
            out.push(f32s("project", [visual.len() / out_width, out_width], visual));
        } else {
            let side = vision.tower.side();
            out.push(f32s("pixel_values", [tiles, 3, side, side], &pixels));
            out.push(f32s("encode", [tiles, features.len() / tiles / width, width], &features));
            let projections: usize = seen.pictures.iter().map(PictureLayout::projections).sum();
            let tokens = visual.len() / projections / out_width;
            out.push(f32s("project", [projections, tokens, out_width], visual));
        }
        Ok(seen)
    }

    fn sequence(&self, images: usize, prompt: &str, pictures: &[PictureLayout]) -> Result<Sequence, Error> {
        let source = self.source;
        one_picture(&source.config, pictures.len())?;
        let parts = if self.options.raw_prompt {
            raw_parts(prompt, source.config.prompt.image_mark)
        } else {
            source.render(&[Message::user(images, prompt)])?
        };
        let sequence = Layout::default().place(&source.tokenizer, &parts, pictures)?;
        let (count, context) = (sequence.ids.len(), self.context());
        if count == 0 {
            return Err(Error::EmptyPrompt);
        }
        if count.saturating_add(self.options.greedy) > context {
            return Err(too_long(&source.config, count, sequence.visual_tokens(), context));
        }
        Ok(sequence)
    }

    /// The text program over a whole prompt.
    fn read(
        &mut self,
        sequence: &Sequence,
        visual: Vec<f32>,
        out: &mut Vec<(String, Tensor)>,
    ) -> Result<(), Error> {
        let (ids, count) = (&sequence.ids, sequence.ids.len());
        let behind = self.options.greedy.max(Self::MOST_ANSWER_TOKENS);
        self.prepare_text(count.next_multiple_of(ROOM_TOKENS), count + behind)?;
        let text = self.text.as_mut().expect("invariant: it was prepared");
        text.visual_rows = visual.len() / self.source.config.text.width;
        text.visual = visual;
        text.prefix = prefix_of(&self.source.config, ids);
        let (places, next_place) = sequence.places();
        text.next_place = next_place;
        // What is rewritten between two calls is to be seen, too.
        let load = &self.options.load;
        let closes = load.kv.while_open() != load.kv || load.kv_image.is_some();
        let at_once = if closes && text.prefix == 0 { CLOSED_TOKENS } else { count };
        let outputs = text.executable.program().outputs();
        let mut outputs: Vec<(String, Vec<f32>)> =
            outputs.iter().map(|(name, _)| (name.clone(), vec![])).collect();
        for (at, ids) in ids.chunks(at_once).enumerate() {
            let places = places.get(at * at_once..at * at_once + ids.len()).unwrap_or_default();
            text.run(ids, places, ids.len(), &self.cancel)?;
            for (name, values) in &mut outputs {
                let of_run = text.executable.output(name);
                values.extend_from_slice(of_run.expect("invariant: outputs are there after a run"));
            }
        }
        let logits = text.logits();
        let width = logits.len() / (count - (count - 1) / at_once * at_once);
        text.last = logits[logits.len() - width..].to_vec();

        let shown: Vec<i32> = ids.iter().map(|id| (*id).max(-1)).collect();
        out.push(i32s("input_ids", &shown));
        for (name, values) in outputs {
            out.push(f32s(&name, [count, values.len() / count], &values));
        }
        Ok(())
    }

    /// A text program for so many tokens at once, and an empty cache for `capacity` of them.
    fn prepare_text(&mut self, tokens: usize, capacity: usize) -> Result<(), Error> {
        if let Some(text) = self.text.as_mut().filter(|text| text.room >= tokens) {
            if text.state.capacity() < capacity {
                text.state = text.executable.new_state(StateOptions::new(capacity))?;
            }
            text.state.truncate(0);
            return Ok(());
        }
        // Before the next one is compiled, so that the two never share the memory.
        self.text = None;
        let limits = Bindings::new()
            .with(Sym::Prefix, tokens)
            .with(Sym::Tokens, tokens)
            .with(Sym::Outputs, tokens)
            .with(Sym::Visual, tokens);
        let program = &self.programs.text;
        let executable =
            compile(self.source, self.backend.as_ref(), program, &limits, &self.packed, &self.cancel)?;
        let state = executable.new_state(StateOptions::new(capacity))?;
        self.text = Some(Text {
            executable,
            room: tokens,
            state,
            visual: vec![],
            visual_rows: 0,
            prefix: 0,
            next_place: 0,
            last: vec![],
        });
        Ok(())
    }

    /// Greedy tokens behind the prompt, until one of `stops`; the cache is then as before.
    fn go_on(&mut self, most: usize, stops: &[u32]) -> Result<Vec<u32>, Error> {
        let text = self.text.as_mut().ok_or(Error::EmptyPrompt)?;
        let prompt = text.state.len();
        let mut next = crate::sample::greedy(&text.last)?;
        let mut tokens = vec![];
        while tokens.len() < most && !stops.contains(&next) {
            tokens.push(next);
            if tokens.len() == most {
                break;
            }
            let place = text.next_place + tokens.len() as i32 - 1;
            text.run(&[next as i32], &[[place; 3]], 1, &self.cancel)?;
            next = crate::sample::greedy(text.logits())?;
        }
        text.state.truncate(prompt);
        Ok(tokens)
    }
}

impl Text {
    /// Appends tokens; logits of the last `outputs` of them are computed.
    fn run(
        &mut self,
        ids: &[i32],
        places: &[[i32; 3]],
        outputs: usize,
        cancel: &Cancel,
    ) -> Result<(), Error> {
        let count = ids.len();
        let sizes = Bindings::new()
            .with(Sym::Prefix, self.prefix)
            .with(Sym::Tokens, count)
            .with(Sym::Outputs, outputs)
            .with(Sym::Visual, self.visual_rows);
        let mut at = vec![];
        positions(self.executable.program(), self.state.len(), count, places, &mut at);
        let rows: Vec<i32> = ((count - outputs) as i32..count as i32).collect();
        let inputs =
            [InputData::I32(ids), InputData::I32(&at), InputData::I32(&rows), InputData::F32(&self.visual)];
        // A text model has no `visual` input.
        let inputs = &inputs[..self.executable.program().inputs().len()];
        self.executable.run(&sizes, inputs, Some(self.state.as_mut()), cancel)?;
        Ok(())
    }

    fn logits(&self) -> &[f32] {
        self.executable.output("logits").expect("invariant: the text program has logits")
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
