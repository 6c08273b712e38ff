//! Where frames come from: a folder of pictures, or a file through ffmpeg.

use super::ffmpeg::Ffmpeg;
use crate::{Error, Image};
use margay_prompt::image::ImageLimits;
use std::path::{Path, PathBuf};

/// Which frames are read, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct FramesOptions {
    /// Frames a second that are taken of a file; `None` takes all. A folder says no times.
    pub fps: Option<f64>,
    /// Every so many-th frame is taken.
    pub every: usize,
    /// The program that decodes files.
    pub ffmpeg: PathBuf,
    /// Bounds of a frame.
    pub limits: ImageLimits,
}

impl Default for FramesOptions {
    fn default() -> Self {
        FramesOptions { fps: None, every: 1, ffmpeg: "ffmpeg".into(), limits: ImageLimits::default() }
    }
}

/// Frames, one at a time.
pub struct Frames {
    source: Source,
    every: usize,
    next: usize,
}

enum Source {
    Folder(std::vec::IntoIter<PathBuf>),
    File(Ffmpeg),
}

/// Endings of the pictures of a folder that are frames.
const ENDINGS: [&str; 6] = ["png", "jpg", "jpeg", "webp", "gif", "bmp"];

impl Frames {
    /// Of a folder, its pictures in the order of their names, numbers in them by their values: of these, only the names are
    /// held. Of a file, what ffmpeg makes of it, of which one frame is there at a time.
    ///
    /// # Errors
    /// [`Error::Video`] where there is nothing to read, for options that do not fit, and where ffmpeg does not start.
    pub fn open(path: &Path, options: &FramesOptions) -> Result<Self, Error> {
        let bad = |what: String| Error::Video { path: path.to_owned(), what };
        if options.every == 0 {
            return Err(bad("every 0th frame is none".to_owned()));
        }
        if let Some(fps) = options.fps.filter(|fps| !(fps.is_finite() && *fps > 0.0)) {
            return Err(bad(format!("{fps} frames a second are none")));
        }
        let kind = std::fs::metadata(path).map_err(|e| bad(e.to_string()))?;
        let source = if kind.is_dir() {
            if options.fps.is_some() {
                let what =
                    "a folder does not say how many frames a second it holds; take every Nth with --every N";
                return Err(bad(what.to_owned()));
            }
            let mut names = vec![];
            for entry in std::fs::read_dir(path).map_err(|e| bad(e.to_string()))? {
                let name = entry.map_err(|e| bad(e.to_string()))?.path();
                let ending = name.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
                if ENDINGS.contains(&ending.as_str()) {
                    names.push(name);
                }
            }
            if names.is_empty() {
                return Err(bad(format!("the folder holds no frames ({})", ENDINGS.join(", "))));
            }
            names.sort_by_cached_key(|name| by_number(&name.to_string_lossy()));
            Source::Folder(names.into_iter())
        } else {
            Source::File(Ffmpeg::start(path, options)?)
        };
        Ok(Frames { source, every: options.every, next: 0 })
    }
}

impl Iterator for Frames {
    type Item = Result<Image, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let taken = self.next.is_multiple_of(self.every);
            self.next += 1;
            match &mut self.source {
                // One that is passed over is not decoded.
                Source::Folder(names) => match names.next()? {
                    name if taken => return Some(Image::open(name)),
                    _ => {}
                },
                Source::File(file) => match file.next()? {
                    Ok(_) if !taken => {}
                    frame => return Some(frame),
                },
            }
        }
    }
}

/// Text and numbers in turn, so that `frame10` stands behind `frame9`.
fn by_number(name: &str) -> Vec<(String, u64)> {
    let mut parts = vec![];
    let mut rest = name;
    while !rest.is_empty() {
        let text = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let (before, behind) = rest.split_at(text);
        let digits = behind.find(|c: char| !c.is_ascii_digit()).unwrap_or(behind.len());
        parts.push((before.to_owned(), behind[..digits].parse().unwrap_or(u64::MAX)));
        rest = &behind[digits..];
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_names_count_by_their_values() {
        let mut names = ["f10.png", "f9.png", "f1-2.png", "f1.png", "a.png", "f010b.png"];
        names.sort_by_cached_key(|name| by_number(name));
        assert_eq!(names, ["a.png", "f1-2.png", "f1.png", "f9.png", "f10.png", "f010b.png"]);
    }
}
