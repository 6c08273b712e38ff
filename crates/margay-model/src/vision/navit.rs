//! SigLIP over pictures of any shape ("NaViT"): the transformer of [`super::vit`] over patches whose number varies; a patch
//! takes the learned position of the place in a square table that its row and column fall on.
//! Weights by the names of GGUF mmproj files. Source: `modeling_navit_siglip.py` of `openbmb/MiniCPM-V-2_6`.

use super::{Feed, ReadTower, Tower, TowerConfig, vit, vit::VitConfig};
use crate::{
    Features, GgufPart, HfConfig, ModelError, gguf,
    weights::{Rename, Transform},
};
use margay_file::{TensorInfo, gguf::Metadata};
use margay_graph::{Bindings, Builder, Dim, Program, Role, Stage, Sym};
use margay_prompt::image::{ImageSpec, Pixels};
use std::{any::Any, borrow::Cow, sync::Arc};

pub(super) const NAVIT: Tower =
    Tower { id: "navit", hf: &["minicpmv"], gguf: &["resampler"], read_hf, read_gguf };

/// Which generation of the model a file holds; others differ in the decoder, the resampler or the prompt.
/// Source: llama.cpp `minicpmv-convert-image-encoder-to-gguf.py`.
const VERSION_KEY: &str = "clip.minicpmv_version";
const VERSION: usize = 3;

/// Its picture is the table of positions: [`VitConfig::grid`] places a side.
#[derive(Clone, Debug, PartialEq)]
struct NavitConfig(VitConfig);

fn read_hf(config: &HfConfig<'_>, features: Features) -> ReadTower {
    Ok(Arc::new(NavitConfig(vit::hf_config(config, features)?)))
}

fn read_gguf(part: &GgufPart<'_>, features: Features) -> ReadTower {
    let version = part.metadata.usize(VERSION_KEY)?;
    if version != VERSION {
        let what = format!("{version} is not supported; {VERSION} is MiniCPM-V 2.6");
        return Err(gguf::field(VERSION_KEY, what));
    }
    // `image_size` is that of slices here; the table tells its own.
    let name = "v.position_embd.weight";
    let table =
        part.tensors.info(name).ok_or_else(|| ModelError::weight(name, "the file does not hold it"))?;
    let rows = table.shape.dims().iter().copied().find(|size| *size != 1).unwrap_or(1);
    let side = rows.isqrt();
    if side * side != rows {
        return Err(ModelError::weight(name, format!("is {}, no square of positions", table.shape)));
    }
    let patch = part.metadata.usize("clip.vision.patch_size")?;
    let image = side.saturating_mul(patch);
    Ok(Arc::new(NavitConfig(vit::gguf_config(part, features, image)?)))
}

impl TowerConfig for NavitConfig {
    fn tower(&self) -> &'static Tower {
        &NAVIT
    }

    /// Of the smallest picture.
    fn side(&self) -> usize {
        self.0.patch
    }

    /// Of the smallest picture.
    fn grid(&self) -> usize {
        1
    }

    fn grid_of(&self, width: usize, height: usize) -> (usize, usize) {
        (height / self.0.patch, width / self.0.patch)
    }

    fn width(&self) -> usize {
        self.0.width
    }

    fn describe(&self) -> String {
        let VitConfig { patch, layers, width, ffn, heads, .. } = self.0;
        format!(
            "pictures of any shape in patches of {patch}, {0} x {0} positions, {layers} layers of width {width}, ffn {ffn}, \
             {heads} heads",
            self.0.grid()
        )
    }

    fn image(&self) -> ImageSpec {
        ImageSpec::siglip_squash(u32::try_from(self.0.patch).unwrap_or(u32::MAX))
    }

    fn feed<'p>(&self, tile: &'p Pixels) -> Feed<'p> {
        let (rows, columns) = self.grid_of(tile.width, tile.height);
        let places = || (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column)));
        let table = self.0.grid();
        let [down, across] = [buckets(rows, table), buckets(columns, table)];
        let position = |(row, column): (usize, usize)| (down[row] * table + across[column]) as i32;
        Feed {
            pixels: Cow::Owned(tile.squares(self.0.patch, places())),
            bindings: Bindings::new().with(Sym::Patches, rows * columns),
            integers: vec![
                ("positions", places().map(position).collect()),
                ("rows", places().map(|(row, _)| row as i32).collect()),
                ("columns", places().map(|(_, column)| column as i32).collect()),
            ],
            kept: None,
        }
    }

    fn encode(&self) -> Result<Program, ModelError> {
        let c = &self.0;
        let mut b = Builder::new(Stage::Encode);
        let pixels = 3 * c.patch * c.patch;
        let x = b.input_f32("pixels", [Sym::Patches.into(), Dim::from(pixels)]);
        let positions = b.input_i32("positions", Sym::Patches);
        let embed = b.weight("v.patch_embd.weight", [c.width, pixels], Role::PatchEmbedding);
        let bias = c.patch_bias.then(|| b.weight("v.patch_embd.bias", [c.width], Role::Bias));
        let x = b.linear(x, embed, bias)?; // [P, C]
        let places = [c.grid() * c.grid(), c.width];
        let table = b.weight("v.position_embd.weight", places, Role::PositionEmbedding);
        let table = b.param(table)?;
        let positions = b.gather_rows(table, positions)?;
        let x = b.add(x, positions)?;
        let (x, _) = vit::blocks(&mut b, c, x, None)?;
        b.output("encode", x);
        Ok(b.finish()?)
    }

    fn rename(&self, inner: &str) -> Option<Rename> {
        self.0.rename(inner)
    }

    fn idles(&self, name: &str) -> bool {
        self.0.idles(name)
    }

    fn parts(&self) -> Vec<(String, Vec<(String, Transform)>)> {
        self.0.parts()
    }

    fn exchanged(&self, info: &dyn Fn(&str) -> Option<TensorInfo>) -> Vec<(String, String)> {
        self.0.exchanged(info)
    }

    fn ffn(&self) -> Option<usize> {
        Some(self.0.ffn)
    }

    fn with_ffn(&self, ffn: usize) -> Option<Arc<dyn TowerConfig>> {
        let mut vit = self.0.clone();
        vit.ffn = ffn;
        Some(Arc::new(NavitConfig(vit)))
    }

    fn put(&self, meta: &mut Metadata) {
        self.0.put(meta);
        meta.insert("clip.has_minicpmv_projector", true);
        meta.insert(VERSION_KEY, VERSION as i32);
    }

    fn same(&self, other: &dyn TowerConfig) -> bool {
        (other as &dyn Any).downcast_ref() == Some(self)
    }
}

/// Row (or column) of a table of `table` that each of `count` rows falls on: about `floor(table * i / count)`, but as the
/// published code counts it, in float32, where on a boundary the last bit decides.
fn buckets(count: usize, table: usize) -> Vec<usize> {
    let each = 1.0 / table as f64;
    let boundaries = arange(each, each, ((1.0 - each) / each).ceil() as usize);
    let places = arange(0.0, f64::from(1.0 / count as f32), count);
    places.iter().map(|place| boundaries.partition_point(|boundary| boundary <= place)).collect()
}

/// PyTorch's `arange` of float32 on a CPU with vectors of eight: pairs of vectors from their rounded first number on, what
/// is left one by one. Source: PyTorch `RangeFactoriesKernel.cpp`, `Loops.h`.
fn arange(start: f64, step: f64, count: usize) -> Vec<f32> {
    const LANES: usize = 8;
    let paired = count - count % (2 * LANES);
    let at = |i: usize| match i < paired {
        true => {
            let first = (start + step * (i - i % LANES) as f64) as f32;
            (f64::from(first) + step * (i % LANES) as f64) as f32
        }
        false => (start + step * i as f64) as f32,
    };
    (0..count).map(at).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All numbers for 1 to 700 rows, folded into one, as PyTorch 2.15 gives them:
    /// `bucketize(arange(0, 1 - 1e-6, 1 / tensor(rows, dtype=int32)), arange(1 / table, 1, 1 / table), right=True)`.
    #[test]
    fn rows_fall_where_they_do_in_pytorch() {
        for (table, expected) in [(70, 513_022_712), (12, 427_483_771), (5, 754_956_296)] {
            let all = (1..=700).flat_map(|count| buckets(count, table));
            let folded = all.fold(0u64, |sum, bucket| (sum * 31 + bucket as u64 + 1) % 1_000_000_007);
            assert_eq!(folded, expected, "{table}");
        }
        assert_eq!(buckets(70, 70), Vec::from_iter(0..70));
        // 70 * 5 / 25 is 14, but a fifth in float32 lies below the boundary.
        assert_eq!(buckets(25, 70)[5], 13);
    }

    #[test]
    fn what_a_tower_takes_of_a_picture_fits_its_program() {
        let config = serde_json::json!({
            "model_type": "siglip", "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 1,
            "num_attention_heads": 2, "image_size": 20, "patch_size": 4,
        });
        let tower = read_hf(&HfConfig::new(&config), Features::Final).unwrap();
        let tile = Pixels { channels: 3, height: 12, width: 28, data: vec![0.5; 3 * 12 * 28] };
        let (feed, program) = (tower.feed(&tile), tower.encode().unwrap());
        for ((name, id), input) in program.inputs().iter().zip(feed.inputs(&program, &feed.pixels)) {
            let dims = program.value(*id).dims.iter().map(|dim| dim.eval(&feed.bindings).unwrap());
            let len = match input {
                margay_graph::InputData::F32(data) => data.len(),
                margay_graph::InputData::I32(data) => data.len(),
            };
            assert_eq!(len, dims.product::<usize>(), "{name}");
        }
    }
}
