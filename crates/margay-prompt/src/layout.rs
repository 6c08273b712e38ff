//! Where the visual tokens sit among the text tokens.

use serde::{Deserialize, Serialize};
use std::ops::Range;

use crate::image::Stitch;
use crate::text::{RenderedPart, Segment, Tokenizer, TokenizerError};

/// How a prompt is laid out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Layout {
    /// Whether a BOS token stands in front; `None` follows the tokenizer's own rule.
    pub bos: Option<bool>,
}

/// A piece of what one picture becomes in a prompt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Piece {
    /// Trusted text: control tokens and line breaks.
    Text(String),
    /// The visual tokens of the next tile, or of all tiles that are stitched.
    Tile {
        /// How many (rows of the projector's output).
        tokens: usize,
        /// How many of them stand in a row of the picture.
        columns: usize,
    },
}

/// What one picture becomes in a prompt: its tiles in order, and texts around them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PictureLayout {
    pieces: Vec<Piece>,
    stitch: Option<Stitch>,
}

impl PictureLayout {
    /// The pieces; no two neighbours are texts, and none is empty.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// How the features of its tiles become one map before they are projected; `None` where each tile is projected by
    /// itself.
    pub fn stitch(&self) -> Option<Stitch> {
        self.stitch
    }

    /// The same with other numbers of visual tokens, as `tokens` makes of those of each tile: they stand in one row, so that
    /// this is for models that do not ask where in the picture a token lies.
    pub fn with_tokens(&self, tokens: impl Fn(usize) -> usize) -> Self {
        let piece = |piece: &Piece| match piece {
            Piece::Tile { tokens: count, .. } => {
                let count = tokens(*count);
                Piece::Tile { tokens: count, columns: count }
            }
            text => text.clone(),
        };
        PictureLayout { pieces: self.pieces.iter().map(piece).collect(), stitch: self.stitch }
    }

    /// Visual tokens of each tile, or of all that are stitched, in order.
    pub fn counts(&self) -> impl Iterator<Item = usize> + '_ {
        self.pieces.iter().filter_map(|piece| match piece {
            Piece::Tile { tokens, .. } => Some(*tokens),
            Piece::Text(_) => None,
        })
    }

    /// The same where of each tile's visual tokens only so many, in order, are left: they stand in one row. Tiles without a
    /// number keep theirs.
    pub fn with_counts(&self, counts: &[usize]) -> Self {
        let mut counts = counts.iter();
        let mut piece = |piece: &Piece| match piece {
            Piece::Tile { tokens, columns } => match counts.next() {
                Some(count) if count != tokens => Piece::Tile { tokens: *count, columns: *count },
                _ => Piece::Tile { tokens: *tokens, columns: *columns },
            },
            text => text.clone(),
        };
        PictureLayout { pieces: self.pieces.iter().map(&mut piece).collect(), stitch: self.stitch }
    }

    /// Whether it is `whole` with fewer visual tokens of some tiles, which then stand in one row: what [`Sequence::cut`] makes.
    pub fn is_cut_of(&self, whole: &PictureLayout) -> bool {
        let is_cut = |pair: (&Piece, &Piece)| match pair {
            (Piece::Tile { tokens, columns }, Piece::Tile { tokens: of, .. }) => {
                pair.0 == pair.1 || (tokens < of && tokens == columns)
            }
            (one, other) => one == other,
        };
        self.stitch == whole.stitch
            && self.pieces.len() == whole.pieces.len()
            && self.pieces.iter().zip(&whole.pieces).all(is_cut)
    }

    /// Rows and columns of the visual tokens of each tile, or of all that are stitched, in order; one row where they do not lie
    /// on the picture.
    pub fn grids(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        self.pieces.iter().filter_map(|piece| match piece {
            Piece::Tile { tokens, columns } => Some((tokens / columns.max(&1), *columns)),
            Piece::Text(_) => None,
        })
    }

    /// The same where squares of `side` x `side` visual tokens become one, at the edges those that there are.
    pub fn pooled(&self, side: usize) -> Self {
        let side = side.max(1);
        let mut grids = self.grids().map(|(rows, columns)| (rows.div_ceil(side), columns.div_ceil(side)));
        let mut piece = |piece: &Piece| match piece {
            Piece::Tile { .. } => {
                let (rows, columns) = grids.next().unwrap_or_default();
                Piece::Tile { tokens: rows * columns, columns }
            }
            text => text.clone(),
        };
        PictureLayout { pieces: self.pieces.iter().map(&mut piece).collect(), stitch: self.stitch }
    }

    /// Number of tiles that the tower sees.
    pub fn tiles(&self) -> usize {
        self.stitch.map_or_else(|| self.projections(), |stitch| stitch.tiles())
    }

    /// How often the projector runs: once a tile, or once for all that are stitched.
    pub fn projections(&self) -> usize {
        self.pieces.iter().filter(|piece| matches!(piece, Piece::Tile { .. })).count()
    }

    /// The layout of the picture of that number in its prompt, which its marks may write.
    fn numbered(&self, image: usize) -> Self {
        let number = |piece: &Piece| match piece {
            Piece::Text(text) => Piece::Text(text.replace("{image}", &image.to_string())),
            tile => tile.clone(),
        };
        PictureLayout { pieces: self.pieces.iter().map(number).collect(), stitch: self.stitch }
    }

    pub(crate) fn stitch_with(&mut self, stitch: Stitch) {
        self.stitch = Some(stitch);
    }

    /// Visual tokens of all tiles.
    pub fn visual_tokens(&self) -> usize {
        let tokens = |piece: &Piece| if let Piece::Tile { tokens, .. } = piece { *tokens } else { 0 };
        self.pieces.iter().map(tokens).fold(0, usize::saturating_add)
    }

    /// Appends pieces, joining texts.
    pub(crate) fn push<const N: usize>(&mut self, pieces: [Piece; N]) {
        for piece in pieces {
            match (self.pieces.last_mut(), piece) {
                (_, Piece::Text(more)) if more.is_empty() => {}
                (Some(Piece::Text(text)), Piece::Text(more)) => text.push_str(&more),
                (_, piece) => self.pieces.push(piece),
            }
        }
    }
}

/// A prompt ready for prefill.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sequence {
    /// One entry per position: a token's id, or `-1 - r` for visual row `r` (0-based over all tiles of all images).
    pub ids: Vec<i32>,
    /// The positions of each tile's visual tokens, in order.
    pub tiles: Vec<Range<usize>>,
    /// How many of each tile's visual tokens stand in a row of the picture.
    pub columns: Vec<usize>,
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
    /// The template writes a token that the vocabulary does not have.
    #[error(
        "the chat template writes token {id}, which the vocabulary does not have; it belongs to another tokenizer"
    )]
    NoToken {
        /// Its id.
        id: u32,
    },
    /// The text could not be tokenised.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
}

/// Most positions of a sequence: far beyond any context, far below what an `i32` counts.
const MAX_POSITIONS: usize = 1 << 24;

impl Layout {
    /// Tokenises the parts and places the visual tokens of the pictures.
    ///
    /// The text on each side of a tile is tokenised on its own, a picture's texts together with the prompt's beside
    /// them: a SentencePiece vocabulary puts its dummy space at the start of each (unless its rule is to put it at the
    /// start of the prompt alone); one BOS stands in front. Source: LLaVA `mm_utils.py`, `tokenizer_image_token`;
    /// transformers' `Metaspace` with `first`.
    ///
    /// # Errors
    /// [`LayoutError::ImageCount`] if the parts mark another number of images, [`LayoutError::TooLong`].
    pub fn place(
        &self,
        tokenizer: &Tokenizer,
        parts: &[RenderedPart],
        pictures: &[PictureLayout],
    ) -> Result<Sequence, LayoutError> {
        let marks = parts.iter().filter(|p| matches!(p, RenderedPart::Image)).count();
        if marks != pictures.len() {
            return Err(LayoutError::ImageCount { marks, images: pictures.len() });
        }
        let rows = pictures.iter().map(PictureLayout::visual_tokens).fold(0, usize::saturating_add);
        if rows > MAX_POSITIONS {
            return Err(LayoutError::TooLong { limit: MAX_POSITIONS });
        }

        let pictures: Vec<_> =
            pictures.iter().enumerate().map(|(at, picture)| picture.numbered(at)).collect();
        let bos = tokenizer.bos().filter(|_| self.bos.unwrap_or_else(|| tokenizer.adds_bos()));
        let mut placing = Placing { tokenizer, bos, texts: vec![], rows: 0, sequence: Sequence::default() };
        let mut pictures = pictures.iter();
        for part in parts {
            match part {
                &RenderedPart::Text { ref text, trusted } => placing.texts.push(Segment { text, trusted }),
                RenderedPart::Token(id) => placing.token(*id)?,
                RenderedPart::Image => {
                    for piece in pictures.next().map_or(&[][..], PictureLayout::pieces) {
                        match piece {
                            Piece::Text(text) => placing.texts.push(Segment::trusted(text)),
                            Piece::Tile { tokens, columns } => placing.tile(*tokens, *columns)?,
                        }
                    }
                }
            }
        }
        placing.text()?;
        Ok(placing.sequence)
    }
}

impl Sequence {
    /// Positions that visual tokens take.
    pub fn visual_tokens(&self) -> usize {
        self.tiles.iter().map(Range::len).sum()
    }

    /// Leaves the first so many visual tokens of each tile, as `counts` says of all tiles in order, and numbers the rows anew;
    /// says whether that changed anything. Where there is no number for a tile, or a greater one, it stays as it is.
    pub fn cut(&mut self, counts: impl IntoIterator<Item = usize>) -> bool {
        let mut counts = counts.into_iter();
        let mut cut = Sequence::default();
        let (mut text, mut row) = (0, 0);
        for (tile, columns) in self.tiles.iter().zip(&self.columns) {
            let count = counts.next().map_or(tile.len(), |count| count.min(tile.len()));
            cut.ids.extend_from_slice(&self.ids[text..tile.start]);
            let start = cut.ids.len();
            cut.ids.extend((row..).take(count).map(|row: i32| -1 - row));
            cut.tiles.push(start..cut.ids.len());
            cut.columns.push(if count == tile.len() { *columns } else { count });
            (text, row) = (tile.end, row + count as i32);
        }
        cut.ids.extend_from_slice(&self.ids[text..]);
        let changes = cut.ids.len() != self.ids.len();
        *self = cut;
        changes
    }

    /// For each token its place on three axes, time, row and column; and the place of the token that follows. Text goes
    /// on along all three at once. A tile is one moment, within which rows and columns are counted; what follows stands
    /// behind the greatest of them. Source: transformers `modeling_qwen2_vl.py`, `get_rope_index`.
    pub fn places(&self) -> (Vec<[i32; 3]>, i32) {
        let mut places = Vec::with_capacity(self.ids.len());
        let mut next = 0;
        let text = |places: &mut Vec<[i32; 3]>, next: &mut i32, to: usize| {
            while places.len() < to {
                places.push([*next; 3]);
                *next += 1;
            }
        };
        for (tile, &columns) in self.tiles.iter().zip(&self.columns) {
            text(&mut places, &mut next, tile.start);
            let at = |i: usize| [i / columns.max(1), i % columns.max(1)].map(|n| next + n as i32);
            places.extend((0..tile.len()).map(at).map(|[row, column]| [next, row, column]));
            let greatest = places[tile.clone()].iter().flatten().max();
            next = greatest.map_or(next, |greatest| greatest + 1);
        }
        text(&mut places, &mut next, self.ids.len());
        (places, next)
    }
}

/// A sequence as it grows.
struct Placing<'p> {
    tokenizer: &'p Tokenizer,
    /// The BOS that stands in front.
    bos: Option<u32>,
    /// Texts since the last tile or token.
    texts: Vec<Segment<'p>>,
    /// Visual rows so far.
    rows: i32,
    sequence: Sequence,
}

impl Placing<'_> {
    /// Appends what was said since the last tile or token.
    fn text(&mut self) -> Result<(), LayoutError> {
        let first = self.sequence.ids.is_empty();
        let ids = if first {
            self.tokenizer.encode_segments(&self.texts)?
        } else {
            self.tokenizer.encode_segments_behind(&self.texts)?
        };
        self.texts.clear();
        if let Some(bos) = self.bos.filter(|bos| first && ids.first() != Some(bos)) {
            self.sequence.ids.push(bos as i32);
        }
        // Vocabularies are capped far below the sign bit.
        self.sequence.ids.extend(ids.iter().map(|id| *id as i32));
        self.check_length()
    }

    /// Appends a token by its id.
    fn token(&mut self, id: u32) -> Result<(), LayoutError> {
        self.text()?;
        if self.tokenizer.token_text(id).is_none() {
            return Err(LayoutError::NoToken { id });
        }
        self.sequence.ids.push(id as i32);
        self.check_length()
    }

    /// Appends the rows of the next tile.
    fn tile(&mut self, rows: usize, columns: usize) -> Result<(), LayoutError> {
        self.text()?;
        let start = self.sequence.ids.len();
        let end = self.rows + rows as i32;
        self.sequence.ids.extend((self.rows..end).map(|row| -1 - row));
        self.sequence.tiles.push(start..self.sequence.ids.len());
        self.sequence.columns.push(columns);
        self.rows = end;
        self.check_length()
    }

    fn check_length(&self) -> Result<(), LayoutError> {
        let fits = self.sequence.ids.len() <= MAX_POSITIONS;
        if fits { Ok(()) } else { Err(LayoutError::TooLong { limit: MAX_POSITIONS }) }
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

    fn tile(tokens: usize) -> Piece {
        Piece::Tile { tokens, columns: 2 }
    }

    fn picture<const N: usize>(pieces: [Piece; N]) -> PictureLayout {
        let mut picture = PictureLayout::default();
        picture.push(pieces);
        picture
    }

    fn text(text: &str, trusted: bool) -> RenderedPart {
        RenderedPart::Text { text: text.to_owned(), trusted }
    }

    #[test]
    fn each_side_of_an_image_gets_its_own_dummy_space_and_only_the_front_a_bos() {
        let parts = [text("a", true), RenderedPart::Image, text("\nb", true), RenderedPart::Image];
        let pictures = [picture([tile(3)]), picture([tile(3)])];
        let sequence = Layout::default().place(&tokenizer(true), &parts, &pictures).unwrap();
        assert_eq!(sequence.ids, [1, 3, 5, -1, -2, -3, 3, 4, 6, -4, -5, -6]);
        assert_eq!(sequence.tiles, [3..6, 9..12]);
    }

    #[test]
    fn a_sequence_that_is_cut_is_that_of_smaller_pictures() {
        let parts = [text("a", true), RenderedPart::Image, text("b", true), RenderedPart::Image];
        let placed = |counts: [usize; 3]| {
            let [a, b, c] = counts.map(|tokens| Piece::Tile { tokens, columns: tokens });
            let pictures = [picture([a, Piece::Text("s".to_owned()), b]), picture([c])];
            Layout::default().place(&tokenizer(true), &parts, &pictures).unwrap()
        };
        let mut whole = placed([4, 3, 2]);
        assert!(!whole.cut([4, 3, 2, 9]) && !whole.cut([]));
        assert_eq!(whole, placed([4, 3, 2]));
        assert!(whole.cut([1, 3, 0]));
        assert_eq!(whole, placed([1, 3, 0]));
        let layout = picture([tile(4), Piece::Text("s".to_owned()), tile(2)]);
        assert_eq!(layout.with_counts(&layout.counts().collect::<Vec<_>>()), layout);
        let pooled = picture([Piece::Tile { tokens: 15, columns: 5 }, tile(2)]).pooled(2);
        assert_eq!(pooled.grids().collect::<Vec<_>>(), [(2, 3), (1, 1)]);
        assert_eq!(layout.with_counts(&[3, 2]).counts().collect::<Vec<_>>(), [3, 2]);
    }

    #[test]
    fn a_pictures_texts_are_trusted_and_one_with_the_words_beside_them() {
        let mark = |text: &str| Piece::Text(text.to_owned());
        let pictures =
            [picture([mark("</s>"), tile(2), mark("\n</s>"), tile(1), mark("b")]), picture([tile(1)])];
        let parts = [text("a", false), RenderedPart::Image, text("</s>", false), RenderedPart::Image];
        let sequence = Layout { bos: Some(false) }.place(&tokenizer(true), &parts, &pictures).unwrap();
        // The words behind the picture are one run with its own last text: no dummy space between them.
        assert_eq!(sequence.ids, [3, 5, 2, -1, -2, 3, 4, 2, -3, 3, 6, 7, 9, 10, 8, -4]);
        assert_eq!(sequence.tiles, [3..5, 8..9, 15..16]);
    }

    #[test]
    fn text_behind_a_tile_stands_behind_its_longer_side() {
        let parts = [text("a", true), RenderedPart::Image, RenderedPart::Image, text("b", true)];
        let wide = picture([Piece::Tile { tokens: 6, columns: 3 }]);
        let sequence =
            Layout { bos: Some(false) }.place(&tokenizer(false), &parts, &[wide, picture([tile(6)])]);
        let (places, next) = sequence.unwrap().places();
        let rows = [[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 1, 0], [0, 1, 1], [0, 1, 2]];
        let tall = [[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1], [0, 2, 0], [0, 2, 1]];
        let from = |start: i32, of: [[i32; 3]; 6]| of.map(|place| place.map(|n| n + start));
        // "a" and "b" are two pieces each: the dummy space and the letter.
        let ends = [[[0; 3], [1; 3]], [[8; 3], [9; 3]]];
        assert_eq!(places, [&ends[0][..], &from(2, rows), &from(5, tall), &ends[1]].concat());
        assert_eq!(next, 10);
    }

    #[test]
    fn bos_follows_the_tokenizer_unless_told_and_never_doubles() {
        let parts = [text("<s>a", true)];
        let ids = |bos, tokenizer: &Tokenizer| Layout { bos }.place(tokenizer, &parts, &[]).unwrap().ids;
        assert_eq!(ids(None, &tokenizer(true)), [1, 3, 5]);
        assert_eq!(ids(Some(false), &tokenizer(true)), [1, 3, 5]); // the template's own
        assert_eq!(ids(None, &tokenizer(false)), [1, 3, 5]);
        let untrusted = [text("<s>a", false)];
        let sequence = Layout { bos: Some(true) }.place(&tokenizer(false), &untrusted, &[]);
        assert_eq!(sequence.unwrap().ids, [1, 3, 7, 10, 8, 5]);
    }

    #[test]
    fn a_wrong_number_of_images_and_an_endless_prompt_are_errors() {
        let layout = Layout::default();
        let long = [picture([tile(1)]), picture([tile(usize::MAX)])];
        let error = layout.place(&tokenizer(true), &[RenderedPart::Image], &long).unwrap_err();
        assert!(error.to_string().contains("marks 1 image(s), but 2 were given"), "{error}");
        let two = [RenderedPart::Image, RenderedPart::Image];
        assert!(matches!(layout.place(&tokenizer(true), &two, &long), Err(LayoutError::TooLong { .. })));
    }
}
