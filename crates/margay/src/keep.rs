//! Conversations that are kept in a file, and go on from it.
//!
//! The file is a safetensors file: the ids of the tokens held, the visual tokens and the KV cache as tensors, the rest as a
//! text of JSON among its metadata, with a SHA-256 of everything. It appears whole or not at all.

use crate::{Error, Model, Session, digest::hexadecimal, image::ImageDigest};
use margay_file::{SafeTensors, TensorSource, safetensors::write_safetensors};
use margay_prompt::{
    layout::PictureLayout,
    text::{Message, Part},
};
use margay_tensor::{DType, Shape, Storage, Tensor};
use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, path::Path};

/// Key of the text among the metadata.
const KEY: &str = "margay.session";
/// Key of its checksum, over that text and all tensors.
const CHECKSUM: &str = "margay.sha256";
/// Changes whenever a file means something else.
const VERSION: u32 = 2;
/// Names of the tensors.
const HELD: &str = "held";
const VISUAL: &str = "visual";
const CACHE: &str = "cache";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    version: u32,
    /// See [`Model::identity`].
    model: String,
    /// See [`margay_graph::State::form`].
    form: String,
    messages: Vec<Message>,
    pictures: Vec<Picture>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Picture {
    layout: PictureLayout,
    digest: ImageDigest,
}

impl Session {
    /// Keeps the conversation in a file, with its KV cache and visual tokens, for [`Model::load_session`]. The file appears
    /// whole or not at all: what bore its name before is there until then, whenever the process dies.
    ///
    /// # Errors
    /// [`Error::File`] where it cannot be written; [`Error::Session`] where the backend's cache cannot be kept.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), Error> {
        let path = path.as_ref();
        let bad = |what: &str| Error::Session { path: path.to_owned(), what: what.to_owned() };
        let form = self
            .state
            .form()
            .ok_or_else(|| bad("this backend's KV cache cannot be kept; use the cpu backend"))?;
        let pictures = self.images.iter().zip(&self.digests);
        let pictures = pictures.map(|(layout, digest)| Picture { layout: layout.clone(), digest: *digest });
        let kept = Kept {
            version: VERSION,
            model: self.model.identity()?,
            form,
            messages: self.messages.clone(),
            pictures: pictures.collect(),
        };
        let text = serde_json::to_string(&kept).map_err(|e| bad(&e.to_string()))?;
        // Tokens behind the first that was dropped are computed again.
        let whole = &self.held[..self.intact()];
        let held: Vec<u8> = whole.iter().flat_map(|id| id.to_le_bytes()).collect();
        let tensor = |dtype, shape: Shape, storage| {
            Tensor::new(dtype, shape, storage).map_err(|e| bad(&e.to_string()))
        };
        let width = self.model.config().text.width;
        let snapshot = self.state.snapshot(whole.len());
        let tensors = [
            tensor(DType::I32, Shape::from([whole.len()]), Storage::from_bytes(&held))?,
            tensor(
                DType::F32,
                Shape::from([self.visual.len() / width, width]),
                Storage::from_f32(&self.visual),
            )?,
            tensor(DType::U8, Shape::from([snapshot.len()]), Storage::from_bytes(&snapshot))?,
        ];
        let checksum = checksum(&text, tensors.iter().map(Tensor::bytes));
        let metadata = BTreeMap::from([(KEY.to_owned(), text), (CHECKSUM.to_owned(), checksum)]);
        let named = [HELD, VISUAL, CACHE].into_iter().zip(&tensors).collect::<Vec<_>>();
        Ok(write_safetensors(path, &named, &metadata)?)
    }
}

impl Model {
    /// The conversation that [`Session::save`] kept: it goes on as if it had never been interrupted.
    ///
    /// # Errors
    /// [`Error::File`] where there is no such file or it is broken, [`Error::Session`] where it is another model's, was kept
    /// by another version or under other settings, or does not fit the context.
    pub fn load_session(&self, path: impl AsRef<Path>) -> Result<Session, Error> {
        let path = path.as_ref();
        let file = SafeTensors::open(path)?;
        let bad = |what: String| Error::Session { path: path.to_owned(), what };
        let no_session = || bad("it holds no conversation".to_owned());
        let text = file.metadata().get(KEY).ok_or_else(no_session)?;
        let version = serde_json::from_str::<serde_json::Value>(text).ok();
        let version = version.as_ref().and_then(|kept| kept.get("version")?.as_u64());
        if version != Some(u64::from(VERSION)) {
            let version = version.map_or_else(|| "no version".to_owned(), |v| format!("version {v}"));
            return Err(bad(format!(
                "it has {version}, and this Margay reads {VERSION}; ask again from the start"
            )));
        }
        let kept: Kept = serde_json::from_str(text).map_err(|e| bad(e.to_string()))?;
        if kept.model != self.identity()? {
            let what =
                "it was kept with another model, or with other weights or settings of it; load it with those";
            return Err(bad(what.to_owned()));
        }
        let tensors = [HELD, VISUAL, CACHE].map(|name| file.tensor(name));
        let [held, visual, cache] = tensors.map(|tensor| tensor.map_err(Error::File));
        let (held, visual, cache) = (held?, visual?, cache?);
        let sum = checksum(text, [&held, &visual, &cache].map(Tensor::bytes).into_iter());
        if file.metadata().get(CHECKSUM) != Some(&sum) {
            return Err(bad("its checksum is wrong: the file was damaged".to_owned()));
        }

        // What a checksum cannot tell: whoever wrote the file may have meant harm.
        let config = self.config();
        let (width, vocabulary) = (config.text.width, config.text.vocabulary);
        if [held.dtype(), visual.dtype(), cache.dtype()] != [DType::I32, DType::F32, DType::U8] {
            return Err(bad("its tensors are of other types than a conversation's".to_owned()));
        }
        let held: Vec<i32> = held.bytes().as_chunks().0.iter().map(|id| i32::from_le_bytes(*id)).collect();
        let visual: Vec<f32> = visual.bytes().as_chunks().0.iter().map(|x| f32::from_le_bytes(*x)).collect();
        let rows = kept.pictures.iter().fold(0usize, |sum, p| sum.saturating_add(p.layout.visual_tokens()));
        if rows.checked_mul(width) != Some(visual.len()) {
            return Err(bad(format!(
                "its pictures are {rows} visual tokens, and it holds {} numbers",
                visual.len()
            )));
        }
        let known = |id: &i32| match usize::try_from(*id) {
            Ok(id) => id < vocabulary,
            Err(_) => ((-1 - i64::from(*id)) as usize) < rows,
        };
        if let Some(id) = held.iter().find(|id| !known(id)) {
            return Err(bad(format!("it holds token {id}, which is none of this model's")));
        }
        let marks =
            kept.messages.iter().flat_map(|m| &m.content).filter(|part| **part == Part::Image).count();
        if !kept.messages.is_empty() && marks != kept.pictures.len() {
            return Err(bad(format!(
                "its messages show {marks} pictures, and it holds {}",
                kept.pictures.len()
            )));
        }
        let mut session = self.session()?;
        if session.state.form().as_ref() != Some(&kept.form) {
            return Err(bad(
                "its KV cache is of another type or layout; load the model with the --kv, --kv-image and --prune-... options it \
                 was kept with"
                    .to_owned(),
            ));
        }
        session.state.restore(held.len(), cache.bytes()).map_err(|e| bad(e.to_string()))?;
        session.held = held;
        session.visual = visual;
        session.messages = kept.messages;
        (session.images, session.digests) = kept.pictures.into_iter().map(|p| (p.layout, p.digest)).unzip();
        Ok(session)
    }
}

fn checksum<'b>(text: &'b str, tensors: impl Iterator<Item = &'b [u8]>) -> String {
    let mut hash = Context::new(&SHA256);
    for bytes in std::iter::once(text.as_bytes()).chain(tensors) {
        hash.update(&(bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    }
    hexadecimal(hash)
}
