//! Frames of a file that ffmpeg decodes, as they come out of its pipe.

use super::FramesOptions;
use crate::{Error, Image};
use margay_prompt::image::Picture;
use std::{
    io::{BufReader, ErrorKind, Read},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    thread::JoinHandle,
};

/// Bytes of its complaints that are repeated.
const MOST_COMPLAINT: u64 = 2000;
/// Bytes of a frame's head at most: `P6`, two numbers and 255, each behind a white space.
const MOST_HEAD: usize = 64;

/// A running ffmpeg. It is ended when this is dropped.
pub(super) struct Ffmpeg {
    path: PathBuf,
    program: PathBuf,
    child: Child,
    frames: BufReader<ChildStdout>,
    complaints: Option<JoinHandle<String>>,
    most_pixels: u64,
    count: usize,
    over: bool,
}

impl Ffmpeg {
    pub(super) fn start(path: &Path, options: &FramesOptions) -> Result<Self, Error> {
        let bad = |what: String| Error::Video { path: path.to_owned(), what };
        let mut command = Command::new(&options.ffmpeg);
        command.args(["-nostdin", "-v", "error"]);
        // A file may name others, on other machines too: it gets files alone.
        command.args(["-protocol_whitelist", "file,pipe"]);
        let mut input = std::ffi::OsString::from("file:");
        input.push(path);
        command.arg("-i").arg(input).args(["-an", "-sn"]);
        if let Some(fps) = options.fps {
            command.args(["-vf", &format!("fps={fps}")]);
        }
        command.args(["-f", "image2pipe", "-c:v", "ppm", "-pix_fmt", "rgb24", "-"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|e| {
            let program = options.ffmpeg.display();
            bad(match e.kind() {
                ErrorKind::NotFound => missing(&options.ffmpeg),
                _ => format!("{program} does not start: {e}"),
            })
        })?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let stdout = stdout.ok_or_else(|| bad("ffmpeg has no output".to_owned()))?;
        // Read to the end, so that it never waits for somebody to listen.
        let complaints = stderr.map(|mut stderr| {
            std::thread::spawn(move || {
                let mut text = vec![];
                let _ = stderr.by_ref().take(MOST_COMPLAINT).read_to_end(&mut text);
                let _ = std::io::copy(&mut stderr, &mut std::io::sink());
                String::from_utf8_lossy(&text).trim().replace('\n', "; ")
            })
        });
        let most_pixels = options.limits.max_pixels;
        let frames = BufReader::new(stdout);
        Ok(Ffmpeg {
            path: path.to_owned(),
            program: options.ffmpeg.clone(),
            child,
            frames,
            complaints,
            most_pixels,
            count: 0,
            over: false,
        })
    }

    pub(super) fn next(&mut self) -> Option<Result<Image, Error>> {
        if self.over {
            return None;
        }
        let frame = self.frame();
        self.over = !matches!(frame, Ok(Some(_)));
        match frame {
            Ok(Some(picture)) => {
                self.count += 1;
                let name = format!("{} frame {}", self.path.display(), self.count);
                Some(Ok(Image::from_picture(picture, &name)))
            }
            Ok(None) => self.ended().err().map(Err),
            Err(what) => {
                let _ = self.child.kill();
                let why = self.ended().err().map_or(what.clone(), |e| format!("{what} ({e})"));
                Some(Err(Error::Video { path: self.path.clone(), what: why }))
            }
        }
    }

    /// The next frame in the portable pixmap format; none at the end.
    fn frame(&mut self) -> Result<Option<Picture>, String> {
        let Some([kind, width, height, most]) = self.head()? else { return Ok(None) };
        let number = |text: &str| text.parse::<u32>().ok().filter(|n| *n > 0);
        let (Some(width), Some(height)) = (number(&width), number(&height)) else {
            return Err(format!("ffmpeg gives a frame of {width} x {height} pixels"));
        };
        if kind != "P6" || most != "255" {
            return Err(format!("ffmpeg gives frames as {kind} of {most} levels, not P6 of 255"));
        }
        let pixels = u64::from(width) * u64::from(height);
        if pixels > self.most_pixels {
            return Err(format!(
                "a frame of {width} x {height} pixels is more than {} pixels",
                self.most_pixels
            ));
        }
        let mut rgb = vec![0; pixels as usize * 3];
        self.frames.read_exact(&mut rgb).map_err(|e| format!("a frame is cut off: {e}"))?;
        Picture::new(width, height, rgb).map(Some).map_err(|e| e.to_string())
    }

    fn head(&mut self) -> Result<Option<[String; 4]>, String> {
        let mut words: [String; 4] = Default::default();
        let (mut word, mut byte) = (0, [0]);
        for at in 0..MOST_HEAD {
            match self.frames.read(&mut byte).map_err(|e| e.to_string())? {
                0 if at == 0 => return Ok(None),
                0 => return Err("a frame's head is cut off".to_owned()),
                _ => {}
            }
            if !byte[0].is_ascii_whitespace() {
                words[word].push(char::from(byte[0]));
            } else if !words[word].is_empty() {
                word += 1;
                if word == words.len() {
                    return Ok(Some(words));
                }
            }
        }
        Err("what ffmpeg gives is no frame".to_owned())
    }

    /// Waits for its end; an error where it failed, or gave nothing.
    fn ended(&mut self) -> Result<(), Error> {
        let bad = |path: &Path, what: String| Err(Error::Video { path: path.to_owned(), what });
        let status = self.child.wait();
        let complaints = self.complaints.take().and_then(|thread| thread.join().ok()).unwrap_or_default();
        match status {
            Ok(status) if status.success() && self.count > 0 => Ok(()),
            Ok(status) if status.success() => bad(&self.path, "ffmpeg finds no frames in it".to_owned()),
            // What shells, and emulated systems, say of a program that is not there.
            Ok(status) if status.code() == Some(127) && self.count == 0 => {
                bad(&self.path, missing(&self.program))
            }
            Ok(status) => bad(&self.path, format!("ffmpeg ended with {status}: {complaints}")),
            Err(e) => bad(&self.path, format!("ffmpeg is lost: {e}")),
        }
    }
}

fn missing(program: &Path) -> String {
    format!(
        "a video file is decoded by ffmpeg, and there is no {}; install it, say where it is with MARGAY_FFMPEG, or give a \
         folder of frames",
        program.display()
    )
}

impl Drop for Ffmpeg {
    fn drop(&mut self) {
        // One that ended is not found any more.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
