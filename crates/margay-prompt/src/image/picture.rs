//! A decoded picture in memory.

use super::ImageError;

/// A picture: 8-bit RGB, row-major, upright, with its alpha plane if the file had one.
///
/// `rgb` holds `height * width * 3` bytes (`[H, W, 3]`); `alpha`, when present, `height * width` bytes.
/// The colours are *not* premultiplied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    width: u32,
    height: u32,
    rgb: Vec<u8>,
    alpha: Option<Vec<u8>>,
}

impl Picture {
    /// A picture from its RGB bytes (`[H, W, 3]`).
    ///
    /// # Errors
    /// [`ImageError::NoPixels`] if a side is 0, [`ImageError::WrongLength`] if `rgb` is not `width * height * 3` long.
    ///
    /// # Examples
    /// ```
    /// use margay_prompt::image::Picture;
    /// let red = Picture::new(2, 1, vec![255, 0, 0, 255, 0, 0]).unwrap();
    /// assert_eq!((red.width(), red.height()), (2, 1));
    /// ```
    pub fn new(width: u32, height: u32, rgb: Vec<u8>) -> Result<Self, ImageError> {
        check_len(width, height, 3, rgb.len())?;
        Ok(Self { width, height, rgb, alpha: None })
    }

    /// A picture from its RGB bytes (`[H, W, 3]`) and its alpha plane (`[H, W]`, 255 = opaque).
    ///
    /// # Errors
    /// As [`Picture::new`], for both planes.
    pub fn with_alpha(width: u32, height: u32, rgb: Vec<u8>, alpha: Vec<u8>) -> Result<Self, ImageError> {
        check_len(width, height, 3, rgb.len())?;
        check_len(width, height, 1, alpha.len())?;
        Ok(Self { width, height, rgb, alpha: Some(alpha) })
    }

    /// A picture of one colour.
    ///
    /// # Errors
    /// [`ImageError::NoPixels`] if a side is 0.
    pub fn filled(width: u32, height: u32, colour: [u8; 3]) -> Result<Self, ImageError> {
        let pixels = width as usize * height as usize;
        Self::new(width, height, colour.repeat(pixels))
    }

    /// Width in pixels.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Height in pixels.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// The colours, `[H, W, 3]`.
    pub fn rgb(&self) -> &[u8] {
        &self.rgb
    }

    /// The alpha plane, `[H, W]`, if the file had one.
    pub fn alpha(&self) -> Option<&[u8]> {
        self.alpha.as_deref()
    }

    /// The colour at column `x`, row `y`.
    ///
    /// # Panics
    /// If the point lies outside the picture.
    pub fn pixel(&self, x: u32, y: u32) -> [u8; 3] {
        assert!(x < self.width && y < self.height, "({x}, {y}) outside {}x{}", self.width, self.height);
        let at = (y as usize * self.width as usize + x as usize) * 3;
        [self.rgb[at], self.rgb[at + 1], self.rgb[at + 2]]
    }
}

fn check_len(width: u32, height: u32, channels: u64, got: usize) -> Result<(), ImageError> {
    if width == 0 || height == 0 {
        return Err(ImageError::NoPixels { width, height });
    }
    // u32 * u32 fits u64; times 4 channels it fits u64 for every side below 2^31.
    let expected = (u64::from(width) * u64::from(height)).saturating_mul(channels);
    if expected != got as u64 {
        return Err(ImageError::WrongLength { width, height, expected, got: got as u64 });
    }
    Ok(())
}
