//! A picture to ask about.

use crate::Error;
use margay_observe::Stopwatch;
use margay_prompt::image::{
    DENSE_TEXT, ImageError, ImageLimits, Picture, decode, halvings, size, text_density,
};
use ring::digest::{Context, SHA256};
use std::{
    io::Read,
    path::Path,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

/// What tells two pictures apart: SHA-256 of their sizes and pixels.
pub(crate) type ImageDigest = [u8; 32];

/// A picture, upright, RGB; decoded, or to be decoded when it is looked at. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Image {
    pixels: Arc<Pixels>,
    /// Width and height.
    size: (u32, u32),
    pub(crate) name: String,
    /// Share of its width and height at which it is seen, where the device is short of something.
    share: f64,
    digest: Arc<OnceLock<ImageDigest>>,
    halvings: Arc<OnceLock<u32>>,
}

/// A picture's pixels, or the file that they are in.
#[derive(Debug, Default)]
struct Pixels {
    /// Empty once they are decoded.
    file: Mutex<Vec<u8>>,
    limits: ImageLimits,
    decoded: OnceLock<Result<Decoded, ImageError>>,
}

#[derive(Debug)]
struct Decoded {
    picture: Picture,
    /// How long reading and decoding took.
    took: Duration,
}

impl Image {
    /// Reads a PNG, JPEG, WebP, GIF or BMP file.
    ///
    /// # Errors
    /// [`Error::ImageFile`] where it cannot be read, [`Error::Image`] where it is no such picture or too large.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let clock = Stopwatch::start();
        let limits = ImageLimits::default();
        let (bytes, name) = read_file(path.as_ref(), &limits)?;
        Self::decode(&bytes, &name, &limits, clock)
    }

    /// As [`Image::open`], but only the header is looked at: pixels are decoded when an answer comes to them, if it can by a
    /// thread beside what it computes ([`crate::Overlap`]).
    ///
    /// # Errors
    /// As [`Image::open`]; but a file whose header is sound and whose pixels are not is told by the answer.
    pub fn open_later(path: impl AsRef<Path>) -> Result<Self, Error> {
        let limits = ImageLimits::default();
        let (bytes, name) = read_file(path.as_ref(), &limits)?;
        let size = size(&bytes, &limits).map_err(|source| Error::Image { place: name.clone(), source })?;
        let pixels = Pixels { file: Mutex::new(bytes), limits, decoded: OnceLock::new() };
        Ok(Self::of_pixels(pixels, size, name))
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
        self.size.0
    }

    /// Height, pixels.
    pub fn height(&self) -> u32 {
        self.size.1
    }

    fn decode(bytes: &[u8], name: &str, limits: &ImageLimits, clock: Stopwatch) -> Result<Self, Error> {
        let picture =
            decode(bytes, limits).map_err(|source| Error::Image { place: name.to_owned(), source })?;
        Ok(Self::new(picture, name.to_owned(), clock.elapsed()))
    }

    fn new(picture: Picture, name: String, took: Duration) -> Self {
        let size = (picture.width(), picture.height());
        let decoded = OnceLock::from(Ok(Decoded { picture, took }));
        Self::of_pixels(Pixels { decoded, ..Pixels::default() }, size, name)
    }

    fn of_pixels(pixels: Pixels, size: (u32, u32), name: String) -> Self {
        let (digest, halvings) = Default::default();
        Image { pixels: Arc::new(pixels), size, name, share: 1.0, digest, halvings }
    }

    /// Its pixels; decoded by whoever asks first, for whom all others wait.
    ///
    /// # Errors
    /// [`Error::Image`] of one that was opened by [`Image::open_later`] and is damaged.
    pub(crate) fn picture(&self) -> Result<&Picture, Error> {
        let decoded = self.pixels.decoded.get_or_init(|| {
            let clock = Stopwatch::start();
            let bytes = std::mem::take(&mut *self.pixels.file.lock().unwrap_or_else(PoisonError::into_inner));
            Ok(Decoded { picture: decode(&bytes, &self.pixels.limits)?, took: clock.elapsed() })
        });
        match decoded {
            Ok(decoded) => Ok(&decoded.picture),
            Err(source) => Err(Error::Image { place: self.name.clone(), source: source.clone() }),
        }
    }

    /// How long reading and decoding took, where its pixels are there.
    pub(crate) fn decoded(&self) -> Option<Duration> {
        Some(self.pixels.decoded.get()?.as_ref().ok()?.took)
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
    pub(crate) fn has_dense_text(&self) -> Result<bool, Error> {
        Ok(text_density(self.picture()?) >= DENSE_TEXT)
    }

    /// How often its sides can be halved with little lost, where it holds no dense text; computed once.
    pub(crate) fn halvings(&self) -> Result<u32, Error> {
        if let Some(known) = self.halvings.get() {
            return Ok(*known);
        }
        let halvings = if self.has_dense_text()? { 0 } else { halvings(self.picture()?) };
        Ok(*self.halvings.get_or_init(|| halvings))
    }

    /// Computed once, over every pixel.
    pub(crate) fn digest(&self) -> Result<ImageDigest, Error> {
        let picture = self.picture()?;
        Ok(*self.digest.get_or_init(|| {
            let mut hash = Context::new(&SHA256);
            hash.update(&self.width().to_le_bytes());
            hash.update(&self.height().to_le_bytes());
            hash.update(picture.rgb());
            // What lies behind a transparent pixel is filled in by the model's own rule.
            hash.update(picture.alpha().unwrap_or_default());
            hash.finish().as_ref().try_into().expect("invariant: SHA-256 is 32 bytes")
        }))
    }
}

/// A picture's file and its name for messages.
fn read_file(path: &Path, limits: &ImageLimits) -> Result<(Vec<u8>, String), Error> {
    let name = path.display().to_string();
    let fail = |source| Error::ImageFile { path: name.clone(), source };
    let file = std::fs::File::open(path).map_err(fail)?;
    let mut bytes = vec![];
    // One byte more than allowed, so that the decoder sees (and says) that the file is too large.
    file.take(limits.max_file_bytes + 1).read_to_end(&mut bytes).map_err(fail)?;
    Ok((bytes, name))
}
