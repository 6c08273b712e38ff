//! `margay inspect`: what a model file holds, and what it will take to run it.

mod parts;
mod work;

use crate::{
    Outcome, Usage, hub,
    memory::{self, Memory},
    model, output,
    sketch::{self, Sketch},
};
use clap::{Args, builder::PossibleValuesParser};
use margay::{
    Error, Image, KvType, LoadOptions, ModelSource, default_context,
    rooms::{
        file::{FileError, Gguf, ModelFiles, SafeTensors, TensorInfo, open_model},
        graph::{Bindings, Program, WeightSpec},
        model::{ModelConfig, ModelPrograms, family},
        observe::report::{bytes, table},
        prompt::layout::PictureLayout,
        tensor::DType,
    },
};
use parts::{Entry, File, StoredTensor, Weights};
use serde::Serialize;
use std::{
    borrow::Cow,
    num::NonZeroUsize,
    path::{Path, PathBuf},
};
use work::Work;

const AFTER_HELP: &str = "\
EXAMPLES:
  margay inspect                                 the built-in model
  margay inspect llava.gguf --image street.png   and what that picture costs
  margay inspect qwen2vl.gguf -i street.png --max-image-tokens 256
  margay inspect mmproj-llava.gguf --tensors
  margay inspect ./llava-1.5-7b --context 2048 --json
  margay inspect shape:llava-1.5-7b:q4_0 --context 2048   a published shape in that type, without a file

MEMORY:
  Predicted without reading the weights, for the CPU backend: the weights as its kernels hold them,
  the buffers of each stage, and the KV cache. The program itself and its vocabulary come on top.";

/// Show what a model file holds, and the memory it will take
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Inspect {
    /// A GGUF file, an mmproj file, a safetensors file, a Hugging Face folder, or shape:NAME[:TYPE or recipe]; the built-in
    /// model unless given
    file: Option<PathBuf>,
    /// The model's vision file, where it does not lie beside the model
    #[arg(long, value_name = "FILE")]
    mmproj: Option<PathBuf>,
    /// List every tensor
    #[arg(long)]
    tensors: bool,
    /// Predict memory for so many tokens of context
    #[arg(long, value_name = "TOKENS")]
    context: Option<NonZeroUsize>,
    /// Predict for keys and values that are kept in this type, as `margay run --kv` does
    #[arg(long, value_name = "TYPE", default_value = KvType::default().name(),
        value_parser = PossibleValuesParser::new(KvType::ALL.map(KvType::name)))]
    kv: String,
    /// Predict for float matrices that are quantized to this type when loaded, as `margay run --type` does
    #[arg(long = "type", value_name = "TYPE", value_parser = model::types())]
    dtype: Option<DType>,
    /// Predict for pictures of at most so many visual tokens, as `margay run --max-image-tokens` does
    #[arg(long, value_name = "N")]
    max_image_tokens: Option<NonZeroUsize>,
    /// Say what this picture costs
    #[arg(long, short = 'i', value_name = "FILE")]
    image: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Everything that is told.
#[derive(Debug, Default, Serialize)]
struct Inspection {
    /// Name the model gives itself.
    name: Option<String>,
    /// Id of its family; `None` where that cannot be told.
    family: Option<&'static str>,
    /// Why it cannot be run as it is.
    problem: Option<String>,
    /// Against what the family was compared.
    verified: Option<&'static str>,
    files: Vec<File>,
    /// Its numbers, for people.
    shape: Vec<String>,
    /// `None` where it depends on the picture's size.
    visual_tokens_per_picture: Option<usize>,
    visual_tokens_per_tile: Option<usize>,
    /// Each picture keeps about its size, and becomes visual tokens by it.
    #[serde(skip)]
    keeps_size: bool,
    /// Rows and columns of patches of the given picture as one tile, and of those cut from it, where they follow its size.
    #[serde(skip)]
    grids: Option<[(usize, usize); 2]>,
    picture: Option<Picture>,
    weights: Vec<Weights>,
    work: Option<Work>,
    memory: Option<Memory>,
    metadata: Vec<Entry>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tensors: Option<Vec<StoredTensor>>,
}

#[derive(Debug, Serialize)]
struct Picture {
    file: PathBuf,
    width: u32,
    height: u32,
    tiles: Option<usize>,
    /// Rows and columns, where they follow its size.
    patches: Option<(usize, usize)>,
    /// Those of each tile that is cut from it, likewise.
    #[serde(skip_serializing_if = "Option::is_none")]
    slice_patches: Option<(usize, usize)>,
    visual_tokens: Option<usize>,
}

impl Inspect {
    pub(crate) fn run(mut self) -> anyhow::Result<Outcome> {
        let text =
            self.file.as_deref().and_then(Path::to_str).filter(|text| text.starts_with(sketch::PREFIX));
        if let Some(name) = text {
            let image = self.image.as_ref().map(Image::open).transpose()?;
            let inspection = self.shape(name, image.map(|image| (image.width(), image.height())))?;
            if self.json {
                output::json(&inspection)?
            } else {
                output::text(&inspection.describe())?
            }
            return Ok(Outcome::Done);
        }
        self.file = self.file.map(|path| hub::local(&path).map(Cow::into_owned)).transpose()?;
        let image = self.image.as_ref().map(Image::open).transpose()?;
        let mut layout = None;
        let size = image.as_ref().map(|image| (image.width(), image.height()));
        let mut inspection = match model::source(self.file.as_deref(), self.mmproj.as_deref()) {
            Ok(source) => {
                let source = match self.dtype {
                    Some(dtype) => source.with_types(dtype, None)?,
                    None => source,
                };
                let source = match self.max_image_tokens {
                    Some(tokens) => source.with_max_image_tokens(tokens)?,
                    None => source,
                };
                let sees = source.config.vision.is_some();
                layout = image.as_ref().filter(|_| sees).map(|i| source.picture_layout(i)).transpose()?;
                self.whole(&source, layout.as_ref().zip(size))?
            }
            Err(e) => match (&self.file, e.downcast::<Error>()) {
                (Some(path), Ok(e)) => self.partial(path, e)?,
                (_, Ok(e)) => return Err(e.into()),
                (_, Err(e)) => return Err(e),
            },
        };
        if let (Some(file), Some(image)) = (self.image, image) {
            let tiles = layout.as_ref().map(|l| l.tiles());
            let visual_tokens =
                layout.as_ref().map_or(inspection.visual_tokens_per_picture, |l| Some(l.visual_tokens()));
            let (width, height) = (image.width(), image.height());
            let patches = inspection.grids.map(|[whole, _]| whole);
            let cut = tiles.is_some_and(|tiles| tiles > 1);
            let slice_patches = inspection.grids.filter(|_| cut).map(|[_, slice]| slice);
            inspection.picture =
                Some(Picture { file, width, height, tiles, patches, slice_patches, visual_tokens });
        }
        if self.json {
            output::json(&inspection)?
        } else {
            output::text(&inspection.describe())?
        }
        Ok(Outcome::Done)
    }

    /// A model that could be run.
    fn whole(
        &self,
        source: &ModelSource,
        picture: Option<(&PictureLayout, (u32, u32))>,
    ) -> anyhow::Result<Inspection> {
        let programs = source.config.programs()?;
        let info = |_: &Program, spec: &WeightSpec| {
            let dtype = source.loaded_format(&spec.name)?;
            source.weights.info(&spec.name).map(|info| TensorInfo { dtype, ..info })
        };
        let predict = |options: &LoadOptions, sizes: Option<&Bindings>| source.predict_memory(options, sizes);
        let files = self.of_files(&source.files);
        self.described(&source.config, &programs, &info, &predict, picture, files)
    }

    /// A shape, which has no files.
    fn shape(&self, name: &str, size: Option<(u32, u32)>) -> anyhow::Result<Inspection> {
        let sketch = Sketch::named(name)?;
        let sketch = match self.dtype {
            Some(dtype) => sketch.with_recipe(dtype.name())?,
            None => sketch,
        };
        let no_effect =
            || Usage(format!("pictures of {} do not become tokens by their size", sketch.config.name));
        let sketch = match self.max_image_tokens {
            Some(tokens) => sketch.with_most_tokens(tokens).ok_or_else(no_effect)?,
            None => sketch,
        };
        let info = |program: &Program, spec: &WeightSpec| {
            Some(TensorInfo { dtype: sketch.format(program, spec), shape: spec.shape.clone() })
        };
        let predict = |options: &LoadOptions, sizes: Option<&Bindings>| sketch.memory(options, sizes);
        let layout = match (&sketch.config.vision, size) {
            (Some(vision), Some((width, height))) => Some(vision.layout(width, height)?),
            _ => None,
        };
        let picture = layout.as_ref().zip(size);
        let mut inspection = self.described(
            &sketch.config,
            &sketch.programs,
            &info,
            &predict,
            picture,
            Inspection::default(),
        )?;
        inspection.shape.extend(sketch.source.map(|source| format!("shape: {source}; {}", sketch.recipe)));
        Ok(inspection)
    }

    fn described(
        &self,
        config: &ModelConfig,
        programs: &ModelPrograms,
        info: &dyn Fn(&Program, &WeightSpec) -> Option<TensorInfo>,
        predict: memory::Predict<'_>,
        picture: Option<(&PictureLayout, (u32, u32))>,
        mut inspection: Inspection,
    ) -> anyhow::Result<Inspection> {
        let family = family(config.family);
        inspection.name = Some(config.name.clone());
        inspection.family = Some(config.family);
        inspection.verified = family.map(|family| family.verified);
        inspection.shape = parts::shape(config);
        if let Some(vision) = &config.vision {
            inspection.visual_tokens_per_tile = Some(vision.tile_tokens());
            let fixed = vision.image.tiling.is_none() && !vision.varies();
            inspection.visual_tokens_per_picture = fixed.then(|| vision.tile_tokens());
            inspection.keeps_size = vision.varies() && vision.image.tiling.is_none();
            let grids = |(width, height)| vision.tile_grids(width, height);
            inspection.grids =
                picture.and_then(|(_, size)| vision.varies().then(|| grids(size))).transpose()?;
        }
        inspection.weights = parts::weights(programs, info);
        let context = self.context.map_or_else(|| default_context(config), NonZeroUsize::get);
        let sizes = match (&config.vision, picture) {
            (Some(vision), Some((_, (width, height)))) => vision.sizes(width, height)?,
            (Some(vision), None) => vision.limits(context),
            (None, _) => Bindings::new(),
        };
        inspection.work = Some(Work::count(programs, &sizes)?);
        let kv = KvType::from_name(&self.kv).unwrap_or_default();
        let picture = picture.map(|(layout, _)| (layout, sizes));
        inspection.memory = Some(Memory::predict(config, programs, predict, self.context, kv, picture)?);
        Ok(inspection)
    }

    /// A file that is no model by itself, or of no family that Margay knows: whatever can be read of it.
    fn partial(&self, path: &Path, error: Error) -> anyhow::Result<Inspection> {
        let is_safetensors = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("safetensors"));
        let mut inspection = if let Ok(files) = open_model(path, self.mmproj.as_deref()) {
            self.of_files(&files)
        } else if is_safetensors && path.is_file() {
            let file = SafeTensors::open(path)?;
            self.of_source(parts::of_safetensors(path, &file), vec![&file])
        } else {
            // Neither a model nor a single file that can be read: the first error says it best.
            let Ok(file) = Gguf::open(path) else { return Err(error.into()) };
            let mut inspection = self.of_source(parts::of_gguf(&file), vec![&file]);
            inspection.visual_tokens_per_tile = parts::visual_tokens(&file);
            inspection.visual_tokens_per_picture =
                inspection.visual_tokens_per_tile.filter(|_| !parts::cuts_tiles(&file));
            inspection
        };
        inspection.problem = Some(match error {
            // Its advice is about running the file.
            Error::File(FileError::NotAModel { what, .. }) => format!("this is {what}"),
            error => output::one_line(&error.into()),
        });
        Ok(inspection)
    }

    fn of_files(&self, files: &ModelFiles) -> Inspection {
        let parts = parts::of_files(files);
        self.of_source(parts, files.sources())
    }

    fn of_source(
        &self,
        (files, metadata): (Vec<File>, Vec<Entry>),
        sources: Vec<&dyn margay::rooms::file::TensorSource>,
    ) -> Inspection {
        let tensors = self.tensors.then(|| parts::tensors(&sources));
        Inspection { files, metadata, tensors, ..Inspection::default() }
    }
}

impl Inspection {
    fn describe(&self) -> String {
        let mut text = String::new();
        let mut fact = |name: &str, value: &str| text += &format!("{name:<12}{}\n", output::harmless(value));
        if let Some(name) = &self.name {
            fact("model", name);
        }
        match (self.family, self.verified) {
            (Some(family), Some(verified)) => fact("family", &format!("{family}, compared with {verified}")),
            _ => fact("family", "unknown"),
        }
        if let Some(problem) = &self.problem {
            fact("problem", problem);
        }
        for file in &self.files {
            fact("file", &file.to_string());
        }
        for line in &self.shape {
            let (name, value) = line.split_once(": ").unwrap_or(("", line));
            fact(name, value);
        }
        match (self.visual_tokens_per_picture, self.visual_tokens_per_tile) {
            (Some(tokens), _) => {
                fact("picture", &format!("becomes {tokens} visual tokens, whatever its size"))
            }
            (None, Some(_)) if self.keeps_size => {
                fact("picture", "keeps about its size, and becomes visual tokens by it");
            }
            (None, Some(tokens)) => {
                fact(
                    "picture",
                    &format!("is cut into tiles by its size; each becomes {tokens} visual tokens"),
                );
            }
            (None, None) => {}
        }
        if let Some(picture) = &self.picture {
            let tokens = picture.visual_tokens.map_or_else(|| "no".to_owned(), |n| n.to_string());
            let (file, width, height) = (picture.file.display(), picture.width, picture.height);
            let tiles = picture.tiles.filter(|n| *n > 1).map_or_else(String::new, |n| format!("{n} tiles, "));
            let grid = picture.patches.map_or_else(String::new, |(rows, columns)| {
                format!("a grid of {columns} x {rows} patches, ")
            });
            let slices = picture
                .slice_patches
                .map_or_else(String::new, |(rows, columns)| format!("slices of {columns} x {rows}, "));
            fact(
                "",
                &format!("{file}: {width} x {height} pixels, {tiles}{grid}{slices}{tokens} visual tokens"),
            );
        }
        if !self.weights.is_empty() {
            let rows = self.weights.iter().map(Weights::row).collect();
            let header = ["stage", "weights", "parameters", "size", "bits/weight", "types"];
            text += &format!("\n{}", output::table_of_words(&header, rows));
        }
        if let Some(work) = &self.work {
            text += "\n";
            text += &work.describe();
        }
        if let Some(memory) = &self.memory {
            text += "\n";
            text += &memory.describe();
        }
        if !self.metadata.is_empty() {
            text += &format!("\nmetadata ({})\n", self.metadata.len());
            for entry in &self.metadata {
                text += &format!("  {} = {}\n", output::harmless(&entry.key), output::harmless(&entry.shown));
            }
        }
        if let Some(tensors) = &self.tensors {
            let row = |t: &StoredTensor| {
                let size = t.bytes.map_or_else(|| "unknown".to_owned(), bytes);
                vec![
                    output::harmless(&t.name).into_owned(),
                    t.dtype.to_owned(),
                    format!("{:?}", t.shape),
                    size,
                ]
            };
            let rows: Vec<_> = tensors.iter().map(row).collect();
            text += &format!("\n{}", table(&["tensor", "type", "shape", "size"], &rows));
        }
        text
    }
}
