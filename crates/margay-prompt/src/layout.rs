//! Where the visual tokens sit among the text tokens.

use std::ops::Range;

use crate::text::{RenderedPart, Segment, Tokenizer, TokenizerError};

/// How a family lays out a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Visual tokens each image yields (rows of the projector's output).
    pub visual_tokens_per_image: usize,
    /// Whether a BOS token stands in front; `None` follows the tokenizer's own rule.
    pub bos: Option<bool>,
}

/// A prompt ready for prefill.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequence {
    /// One entry per position: a token's id, or `-1 - r` for visual row `r` (0-based over all images, row-major).
    pub ids: Vec<i32>,
    /// The positions of each image, in order.
    pub images: Vec<Range<usize>>,
}

/// Visual tokens could not be placed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// The prompt marks another number of images than were given.
    #[error("the prompt marks {marks} image(s), but {images} were given; give one picture per <image> mark")]
    ImageCount {
        /// Image marks in the prompt.
        marks: usize,
        /// Images given.
        images: usize,
    },
    /// The sequence is longer than ids and rows can be counted.
    #[error("the prompt has more than {limit} positions; use fewer or smaller images")]
    TooLong {
        /// The limit.
        limit: usize,
    },
    /// The text could not be tokenised.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
}

/// Most positions of a sequence: far beyond any context, far below what an `i32` counts.
const MAX_POSITIONS: usize = 1 << 24;

impl Layout {
    /// Tokenises the parts and places the visual tokens of `images` images.
    ///
    /// The text on each side of an image is tokenised on its own, so that a SentencePiece vocabulary puts its dummy
    /// space at the start of both (unless its rule is to put it at the start of the prompt alone); one BOS stands in
    /// front. Source: LLaVA `mm_utils.py`, `tokenizer_image_token`; transformers' `Metaspace` with `first`.
    ///
    /// # Errors
    /// [`LayoutError::ImageCount`] if the parts mark another number of images, [`LayoutError::TooLong`].
    pub fn place(
        &self,
        tokenizer: &Tokenizer,
        parts: &[RenderedPart],
        images: usize,
    ) -> Result<Sequence, LayoutError> {
        let marks = parts.iter().filter(|p| matches!(p, RenderedPart::Image)).count();
        if marks != images {
            return Err(LayoutError::ImageCount { marks, images });
        }
        let too_long = || LayoutError::TooLong { limit: MAX_POSITIONS };
        let rows = images.checked_mul(self.visual_tokens_per_image).filter(|rows| *rows <= MAX_POSITIONS);
        rows.ok_or_else(too_long)?;

        let mut sequence = Sequence { ids: Vec::new(), images: Vec::with_capacity(images) };
        if let Some(bos) = tokenizer.bos().filter(|_| self.bos.unwrap_or_else(|| tokenizer.adds_bos())) {
            sequence.ids.push(bos as i32);
        }
        let has_bos = sequence.ids.clone();
        for (i, chunk) in parts.split(|p| matches!(p, RenderedPart::Image)).enumerate() {
            if i > 0 {
                sequence.push_image(self.visual_tokens_per_image);
            }
            let segment = |p| match p {
                &RenderedPart::Text { ref text, trusted } => Some(Segment { text, trusted }),
                RenderedPart::Image => None,
            };
            let segments: Vec<Segment<'_>> = chunk.iter().filter_map(segment).collect();
            let ids = match i {
                0 => tokenizer.encode_segments(&segments)?,
                _ => tokenizer.encode_segments_behind(&segments)?,
            };
            // Vocabularies are capped far below the sign bit. A template that wrote its own BOS gets no second one.
            let mut ids = ids.iter().map(|id| *id as i32).peekable();
            if i == 0 && has_bos.first().is_some_and(|bos| ids.peek() == Some(bos)) {
                ids.next();
            }
            sequence.ids.extend(ids);
        }
        if sequence.ids.len() > MAX_POSITIONS {
            return Err(too_long());
        }
        Ok(sequence)
    }
}

impl Sequence {
    /// Appends the rows of the next image.
    fn push_image(&mut self, rows: usize) {
        let first = (self.images.iter().map(Range::len).sum::<usize>()) as i32;
        let start = self.ids.len();
        self.ids.extend((first..first + rows as i32).map(|row| -1 - row));
        self.images.push(start..self.ids.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::GgufVocab;

    fn tokenizer(add_bos: bool) -> Tokenizer {
        let words = ["<unk>", "<s>", "</s>", "▁", "\n", "a", "b", "<", ">", "/", "s"].map(str::to_owned);
        let vocab = GgufVocab {
            model: "llama".to_owned(),
            scores: vec![-1.0; words.len()],
            token_types: vec![2, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1],
            tokens: words.to_vec(),
            bos: Some(1),
            eos: Some(2),
            add_bos: Some(add_bos),
            ..GgufVocab::default()
        };
        Tokenizer::from_gguf(&vocab).unwrap()
    }

    fn text(text: &str, trusted: bool) -> RenderedPart {
        RenderedPart::Text { text: text.to_owned(), trusted }
    }

    #[test]
    fn each_side_of_an_image_gets_its_own_dummy_space_and_only_the_front_a_bos() {
        let layout = Layout { visual_tokens_per_image: 3, bos: None };
        let parts = [text("a", true), RenderedPart::Image, text("\nb", true), RenderedPart::Image];
        let sequence = layout.place(&tokenizer(true), &parts, 2).unwrap();
        assert_eq!(sequence.ids, [1, 3, 5, -1, -2, -3, 3, 4, 6, -4, -5, -6]);
        assert_eq!(sequence.images, [3..6, 9..12]);
    }

    #[test]
    fn bos_follows_the_tokenizer_unless_told_and_never_doubles() {
        let parts = [text("<s>a", true)];
        let ids = |bos, tokenizer: &Tokenizer| {
            Layout { visual_tokens_per_image: 1, bos }.place(tokenizer, &parts, 0).unwrap().ids
        };
        assert_eq!(ids(None, &tokenizer(true)), [1, 3, 5]);
        assert_eq!(ids(Some(false), &tokenizer(true)), [1, 3, 5]); // the template's own
        assert_eq!(ids(None, &tokenizer(false)), [1, 3, 5]);
        let untrusted = [text("<s>a", false)];
        let sequence =
            Layout { visual_tokens_per_image: 1, bos: Some(true) }.place(&tokenizer(false), &untrusted, 0);
        assert_eq!(sequence.unwrap().ids, [1, 3, 7, 10, 8, 5]);
    }

    #[test]
    fn a_wrong_number_of_images_and_an_endless_prompt_are_errors() {
        let layout = Layout { visual_tokens_per_image: usize::MAX, bos: None };
        let error = layout.place(&tokenizer(true), &[RenderedPart::Image], 2).unwrap_err();
        assert!(error.to_string().contains("marks 1 image(s), but 2 were given"), "{error}");
        let two = [RenderedPart::Image, RenderedPart::Image];
        assert!(matches!(layout.place(&tokenizer(true), &two, 2), Err(LayoutError::TooLong { .. })));
    }
}
