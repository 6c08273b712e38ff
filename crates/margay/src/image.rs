//! A picture to ask about.

use crate::Error;
use margay_observe::Stopwatch;
use margay_prompt::image::{DENSE_TEXT, ImageLimits, Picture, decode, halvings, text_density};
use ring::digest::{Context, SHA256};
use std::{
    io::Read,
    path::Path,
    sync::{Arc, OnceLock},
    time::Duration,
};

/// What tells two pictures apart: SHA-256 of their sizes and pixels.
pub(crate) type ImageDigest = [u8; 32];

/// A decoded picture, upright, RGB. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Image {
    pub(crate) picture: Arc<Picture>,
    pub(crate) name: String,
    /// How long reading and decoding took.
    pub(crate) decode: Duration,
    /// Share of its width and height at which it is seen, where the device is short of something.
    share: f64,
    digest: Arc<OnceLock<ImageDigest>>,
    halvings: Arc<OnceLock<u32>>,
}

impl Image {
    /// Reads a PNG, JPEG, WebP, GIF or BMP file.
    ///
    /// # Errors
    /// [`Error::ImageFile`] where it cannot be read, [`Error::Image`] where it is no such picture or too large.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let clock = Stopwatch::start();
        let path = path.as_ref();
        let name = path.display().to_string();
        let limits = ImageLimits::default();
        let fail = |source| Error::ImageFile { path: name.clone(), source };
        let file = std::fs::File::open(path).map_err(fail)?;
        let mut bytes = vec![];
        // One byte more than allowed, so that the decoder sees (and says) that the file is too large.
        file.take(limits.max_file_bytes + 1).read_to_end(&mut bytes).map_err(fail)?;
        Self::decode(&bytes, &name, &limits, clock)
    }

    /// Decodes a PNG, JPEG, WebP, GIF or BMP picture; `name` stands in messages.
    ///
    /// # Errors
    /// [`Error::Image`] where it is no such picture or too large.
    pub fn from_bytes(bytes: &[u8], name: &str) -> Result<Self, Error> {
        Self::decode(bytes, name, &ImageLimits::default(), Stopwatch::start())
    }

    /// As [`Image::from_bytes`], within bounds of the caller's.
    ///
    /// # Errors
    /// [`Error::Image`] where it is no such picture or too large.
    pub fn from_bytes_within(bytes: &[u8], name: &str, limits: &ImageLimits) -> Result<Self, Error> {
        Self::decode(bytes, name, limits, Stopwatch::start())
    }

    /// A picture of one colour, for tests and examples.
    ///
    /// # Errors
    /// [`Error::Image`] where a side is 0.
    pub fn filled(width: u32, height: u32, rgb: [u8; 3]) -> Result<Self, Error> {
        let name = "filled".to_owned();
        let picture = Picture::filled(width, height, rgb)
            .map_err(|source| Error::Image { place: name.clone(), source })?;
        Ok(Self::new(picture, name, Duration::ZERO))
    }

    /// One that was decoded elsewhere; `name` stands in messages.
    pub fn from_picture(picture: Picture, name: &str) -> Self {
        Self::new(picture, name.to_owned(), Duration::ZERO)
    }

    /// Width, pixels.
    pub fn width(&self) -> u32 {
        self.picture.width()
    }

    /// Height, pixels.
    pub fn height(&self) -> u32 {
        self.picture.height()
    }

    fn decode(bytes: &[u8], name: &str, limits: &ImageLimits, clock: Stopwatch) -> Result<Self, Error> {
        let picture =
            decode(bytes, limits).map_err(|source| Error::Image { place: name.to_owned(), source })?;
        Ok(Self::new(picture, name.to_owned(), clock.elapsed()))
    }

    fn new(picture: Picture, name: String, decode: Duration) -> Self {
        let (digest, halvings) = Default::default();
        Image { picture: Arc::new(picture), name, decode, share: 1.0, digest, halvings }
    }

    /// The same picture, seen at that share of its width and height.
    pub(crate) fn seen_at(&self, share: f64) -> Self {
        Image { share, ..self.clone() }
    }

    /// See [`Image::seen_at`].
    pub(crate) fn share(&self) -> f64 {
        self.share
    }

    /// Whether it is seen as it is.
    pub(crate) fn is_whole(&self) -> bool {
        self.share >= 1.0
    }

    /// Whether so much of it is text that leaving out visual tokens would lose some.
    pub(crate) fn has_dense_text(&self) -> bool {
        text_density(&self.picture) >= DENSE_TEXT
    }

    /// How often its sides can be halved with little lost, where it holds no dense text; computed once.
    pub(crate) fn halvings(&self) -> u32 {
        *self.halvings.get_or_init(|| if self.has_dense_text() { 0 } else { halvings(&self.picture) })
    }

    /// Computed once, over every pixel.
    pub(crate) fn digest(&self) -> ImageDigest {
        *self.digest.get_or_init(|| {
            let mut hash = Context::new(&SHA256);
            hash.update(&self.width().to_le_bytes());
            hash.update(&self.height().to_le_bytes());
            hash.update(self.picture.rgb());
            // What lies behind a transparent pixel is filled in by the model's own rule.
            hash.update(self.picture.alpha().unwrap_or_default());
            hash.finish().as_ref().try_into().expect("invariant: SHA-256 is 32 bytes")
        })
    }
}
