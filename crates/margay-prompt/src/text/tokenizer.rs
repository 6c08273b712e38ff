//! Text to token ids and back: one tokenizer over two engines.

use std::collections::HashMap;

use super::byte_level;
use super::matcher::Matcher;
use super::spm::{self, SpmBpe};
use super::stream::StreamDecoder;
use super::{GgufVocab, PieceKind, SentencePieceModel, TokenizerError, gguf, hub};

/// A stretch of a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment<'a> {
    /// The text.
    pub text: &'a str,
    /// Whether control tokens written out in the text become control tokens (template text) or stay text (user text).
    pub trusted: bool,
}

impl<'a> Segment<'a> {
    /// Text from a template: control tokens in it count.
    pub fn trusted(text: &'a str) -> Self {
        Self { text, trusted: true }
    }

    /// Text from a user: it is text, whatever it says.
    pub fn untrusted(text: &'a str) -> Self {
        Self { text, trusted: false }
    }
}

/// How [`Tokenizer::encode`] treats a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EncodeOptions {
    /// Put BOS in front, if the vocabulary has one.
    pub bos: bool,
    /// Turn control tokens written out in the text into control tokens.
    pub special: bool,
    /// Whether the text gets the dummy space in front; `None` follows the tokenizer's own rule.
    pub prefix_space: Option<bool>,
}

/// What does the merging.
#[derive(Debug, Clone)]
pub(super) enum Engine {
    /// SentencePiece BPE by score.
    Spm(Box<SpmBpe>),
    /// Everything else, through the `tokenizers` crate.
    Hub(Box<tokenizers::Tokenizer>),
}

/// When a run of text gets a dummy space in front, and which character that is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Prefix {
    Never,
    Always(char),
    /// Unless the text starts with one already.
    IfMissing(char),
}

/// What decoding drops at the start of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lead {
    Nothing,
    /// One space: the dummy prefix.
    OneSpace,
    /// All spaces: the vocabulary removes extra whitespace.
    AllSpaces,
}

/// A token of the vocabulary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) text: String,
    pub(super) kind: PieceKind,
}

/// What a reader of vocabularies hands over.
pub(super) struct Parts {
    pub(super) engine: Engine,
    /// Token texts are written in the byte alphabet (else: SentencePiece's `▁` and `<0xNN>`).
    pub(super) byte_level: bool,
    pub(super) tokens: Vec<Token>,
    pub(super) prefix: Prefix,
    /// The prefix rule also holds for text after a control token.
    pub(super) prefix_after_special: bool,
    pub(super) drops: Lead,
    /// Control tokens that swallow whitespace: (before, after).
    pub(super) strip: HashMap<u32, (bool, bool)>,
    pub(super) bos: Option<u32>,
    pub(super) eos: Option<u32>,
    pub(super) eot: Option<u32>,
    pub(super) unk: Option<u32>,
    pub(super) pad: Option<u32>,
    pub(super) add_bos: bool,
    pub(super) add_eos: bool,
    /// Name of the byte-level pre-tokenizer, where the source named it.
    pub(super) pre: Option<String>,
    pub(super) chat_template: Option<String>,
}

/// A tokenizer: text to ids and back.
///
/// # Examples
/// ```
/// use margay_prompt::text::{EncodeOptions, GgufVocab, Segment, Tokenizer};
/// let vocab = GgufVocab {
///     model: "llama".to_owned(),
///     tokens: ["<unk>", "<s>", "</s>", "▁", "h", "i", "hi", "▁hi", "s", "/", "<", ">"].map(str::to_owned).to_vec(),
///     scores: vec![0.0, 0.0, 0.0, -9.0, -9.0, -9.0, -1.0, -2.0, -9.0, -9.0, -9.0, -9.0],
///     token_types: vec![2, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1],
///     bos: Some(1),
///     eos: Some(2),
///     ..GgufVocab::default()
/// };
/// let tokenizer = Tokenizer::from_gguf(&vocab)?;
/// let ids = tokenizer.encode("hi", EncodeOptions { bos: true, ..EncodeOptions::default() })?;
/// assert_eq!((ids.as_slice(), tokenizer.decode(&ids, true).as_str()), (&[1, 7][..], "hi"));
///
/// // A user who types `</s>` types four characters, a template that writes it ends a turn.
/// assert_eq!(tokenizer.encode_segments(&[Segment::untrusted("</s>")])?, [3, 10, 9, 8, 11]);
/// assert_eq!(tokenizer.encode_segments(&[Segment::trusted("</s>")])?, [2]);
/// # Ok::<(), margay_prompt::text::TokenizerError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Tokenizer {
    pub(super) engine: Engine,
    byte_level: bool,
    pub(super) tokens: Vec<Token>,
    ids: HashMap<String, u32>,
    controls: Matcher,
    pub(super) prefix: Prefix,
    pub(super) prefix_after_special: bool,
    drops: Lead,
    strip: HashMap<u32, (bool, bool)>,
    bos: Option<u32>,
    eos: Option<u32>,
    pub(super) eot: Option<u32>,
    pub(super) unk: Option<u32>,
    pub(super) pad: Option<u32>,
    add_bos: bool,
    pub(super) add_eos: bool,
    pub(super) pre: Option<String>,
    stop_ids: Vec<u32>,
    chat_template: Option<String>,
}

/// Control tokens that end an answer in one family or another.
const STOP_TEXTS: &[&str] = &[
    "</s>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<end_of_turn>",
    "<end_of_utterance>",
    "<eos>",
];

/// A stretch of a prompt between two control tokens, or a control token.
enum Run {
    Text(String),
    Control(u32),
}

impl Tokenizer {
    /// Longest text [`Tokenizer::encode`] takes, in bytes.
    pub const MAX_TEXT_BYTES: usize = 16 << 20;

    /// From the bytes of `tokenizer.json` and, if there is one, `tokenizer_config.json`.
    ///
    /// # Errors
    /// [`TokenizerError::BadFile`], [`TokenizerError::UnsupportedModel`].
    pub fn from_tokenizer_json(json: &[u8], config: Option<&[u8]>) -> Result<Self, TokenizerError> {
        hub::read(json, config).map(Self::new)
    }

    /// From a parsed SentencePiece `tokenizer.model`.
    ///
    /// # Errors
    /// [`TokenizerError::BadVocab`], [`TokenizerError::UnsupportedModel`] for a model that is not BPE.
    pub fn from_sentencepiece(model: &SentencePieceModel) -> Result<Self, TokenizerError> {
        gguf::from_sentencepiece(model).map(Self::new)
    }

    /// From the metadata of a GGUF file.
    ///
    /// # Errors
    /// [`TokenizerError::BadVocab`], [`TokenizerError::UnsupportedModel`], [`TokenizerError::UnsupportedPreTokenizer`].
    pub fn from_gguf(vocab: &GgufVocab) -> Result<Self, TokenizerError> {
        gguf::read(vocab).map(Self::new)
    }

    /// The metadata that [`Tokenizer::from_gguf`] turns into an equal tokenizer.
    ///
    /// A `tokenizer.json` that puts its dummy space only where none is (Metaspace) says so in
    /// [`GgufVocab::space_prefix`]; readers that pass it over always put one, as SentencePiece itself does.
    ///
    /// # Errors
    /// [`TokenizerError::NotExpressible`] for pipelines that have no GGUF name.
    pub fn to_gguf_vocab(&self) -> Result<GgufVocab, TokenizerError> {
        gguf::write(self)
    }

    fn new(parts: Parts) -> Self {
        let of_kind = |kind: PieceKind| {
            let tokens = parts.tokens.iter().zip(0u32..);
            tokens.filter(move |(t, _)| t.kind == kind).map(|(t, id)| (t.text.clone(), id))
        };
        // In trusted text the unknown token, too, is one when written out.
        let controls = Matcher::new(of_kind(PieceKind::Control).chain(of_kind(PieceKind::Unknown)));
        let mut ids = HashMap::with_capacity(parts.tokens.len());
        for (token, id) in parts.tokens.iter().zip(0u32..) {
            if !token.text.is_empty() {
                ids.entry(token.text.clone()).or_insert(id);
            }
        }
        let is_control =
            |id: &u32| parts.tokens.get(*id as usize).is_some_and(|t| t.kind == PieceKind::Control);
        let mut stop_ids: Vec<u32> = parts.eos.into_iter().chain(parts.eot).collect();
        let named = STOP_TEXTS.iter().filter_map(|text| ids.get(*text).copied()).filter(is_control);
        stop_ids.extend(named);
        let mut seen = Vec::new();
        stop_ids.retain(|id| {
            let new = !seen.contains(id);
            seen.push(*id);
            new
        });
        Self {
            engine: parts.engine,
            byte_level: parts.byte_level,
            tokens: parts.tokens,
            ids,
            controls,
            prefix: parts.prefix,
            prefix_after_special: parts.prefix_after_special,
            drops: parts.drops,
            strip: parts.strip,
            bos: parts.bos,
            eos: parts.eos,
            eot: parts.eot,
            unk: parts.unk,
            pad: parts.pad,
            add_bos: parts.add_bos,
            add_eos: parts.add_eos,
            pre: parts.pre,
            stop_ids,
            chat_template: parts.chat_template,
        }
    }

    /// Text to ids.
    ///
    /// # Errors
    /// [`TokenizerError::TextTooLong`], [`TokenizerError::Encode`].
    pub fn encode(&self, text: &str, options: EncodeOptions) -> Result<Vec<u32>, TokenizerError> {
        let mut ids: Vec<u32> = self.bos.filter(|_| options.bos).into_iter().collect();
        self.encode_into(&[Segment { text, trusted: options.special }], options.prefix_space, &mut ids)?;
        Ok(ids)
    }

    /// Segments to ids, without BOS: as the joined text, except that control tokens count in trusted segments only.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_segments(&self, segments: &[Segment<'_>]) -> Result<Vec<u32>, TokenizerError> {
        let mut ids = Vec::new();
        self.encode_into(segments, None, &mut ids)?;
        Ok(ids)
    }

    /// As [`Tokenizer::encode_segments`] for text that stands behind something that is no text, such as an image: the
    /// dummy space follows the rule for text behind a control token.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_segments_behind(&self, segments: &[Segment<'_>]) -> Result<Vec<u32>, TokenizerError> {
        let mut ids = Vec::new();
        self.encode_into(segments, Some(self.prefix_after_special), &mut ids)?;
        Ok(ids)
    }

    fn encode_into(
        &self,
        segments: &[Segment<'_>],
        first_prefix: Option<bool>,
        ids: &mut Vec<u32>,
    ) -> Result<(), TokenizerError> {
        let bytes = segments.iter().map(|s| s.text.len()).fold(0, usize::saturating_add);
        if bytes > Self::MAX_TEXT_BYTES {
            return Err(TokenizerError::TextTooLong { bytes, limit: Self::MAX_TEXT_BYTES });
        }
        for (i, run) in self.runs(segments).into_iter().enumerate() {
            match run {
                Run::Control(id) => ids.push(id),
                Run::Text(text) => {
                    let own_rule = i == 0 || self.prefix_after_special;
                    let prefix = if i == 0 { first_prefix.unwrap_or(own_rule) } else { own_rule };
                    self.encode_plain(&text, prefix, ids)?;
                }
            }
        }
        Ok(())
    }

    /// Cuts trusted control tokens out; what lies between is one run, whatever segments it came from.
    fn runs(&self, segments: &[Segment<'_>]) -> Vec<Run> {
        let mut runs = Vec::new();
        let mut text = String::new();
        let mut swallow = false; // the last control token swallows the whitespace after it
        let push = |text: &mut String, part: &str, swallow: &mut bool| {
            let part = if *swallow { part.trim_start() } else { part };
            *swallow &= part.is_empty();
            text.push_str(part);
        };
        for segment in segments {
            let found = if segment.trusted { self.controls.find_all(segment.text) } else { Vec::new() };
            let mut at = 0;
            for (start, end, id) in found {
                push(&mut text, &segment.text[at..start], &mut swallow);
                at = end;
                let (before, after) = self.strip.get(&id).copied().unwrap_or_default();
                let kept = if before { text.trim_end() } else { &text };
                if !kept.is_empty() {
                    runs.push(Run::Text(kept.to_owned()));
                }
                text.clear();
                runs.push(Run::Control(id));
                swallow = after;
            }
            push(&mut text, &segment.text[at..], &mut swallow);
        }
        if !text.is_empty() {
            runs.push(Run::Text(text));
        }
        runs
    }

    /// Appends the ids of a text in which nothing is a control token.
    fn encode_plain(&self, text: &str, prefix: bool, ids: &mut Vec<u32>) -> Result<(), TokenizerError> {
        let lead = match self.prefix {
            Prefix::Always(c) => Some(c),
            Prefix::IfMissing(c) => Some(c).filter(|c| !text.starts_with([*c, ' '])),
            Prefix::Never => None,
        };
        let lead = lead.filter(|_| prefix);
        match &self.engine {
            Engine::Spm(model) => {
                model.encode(text, lead.is_some(), ids);
                Ok(())
            }
            Engine::Hub(model) => {
                let prefixed = lead.map(|c| format!("{c}{text}"));
                let failed = |e: tokenizers::Error| TokenizerError::Encode { detail: e.to_string() };
                let encode = |text: &str| model.encode_fast(text, false).map_err(failed);
                for &id in encode(prefixed.as_deref().unwrap_or(text))?.get_ids() {
                    if !self.is_control(id) {
                        ids.push(id);
                        continue;
                    }
                    // Some vocabularies can merge their way to a control token: spell it instead.
                    for c in self.tokens[id as usize].text.chars() {
                        let spelled = encode(c.encode_utf8(&mut [0; 4]))?;
                        ids.extend(spelled.get_ids().iter().filter(|id| !self.is_control(**id)));
                    }
                }
                Ok(())
            }
        }
    }

    /// Ids to text; invalid UTF-8 becomes U+FFFD, ids outside the vocabulary become nothing.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let mut decoder = StreamDecoder::new(self, skip_special);
        let mut text: String = ids.iter().map(|id| decoder.push(*id)).collect();
        text.push_str(&decoder.finish());
        text
    }

    /// The bytes a token stands for: none of an id outside the vocabulary, its own text of a control token.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        let mut bytes = vec![];
        self.push_bytes(id, false, &mut bytes);
        bytes
    }

    /// Appends the bytes a token stands for.
    pub(super) fn push_bytes(&self, id: u32, skip_special: bool, out: &mut Vec<u8>) {
        let Some(token) = self.tokens.get(id as usize) else { return };
        match token.kind {
            PieceKind::Control | PieceKind::Unknown if skip_special => {}
            PieceKind::Control | PieceKind::Unknown => out.extend(token.text.as_bytes()),
            PieceKind::Byte => out.extend(spm::parse_byte(&token.text)),
            _ if self.byte_level => {
                let bytes: Option<Vec<u8>> = token.text.chars().map(byte_level::byte_of).collect();
                // Added tokens are written as they are; spaces and most scripts are not in the byte alphabet.
                let raw = token.kind == PieceKind::UserDefined;
                out.extend(bytes.filter(|_| !raw).unwrap_or_else(|| token.text.clone().into_bytes()));
            }
            _ => out.extend(token.text.replace(spm::SPACE, " ").as_bytes()),
        }
    }

    pub(super) fn drops(&self) -> Lead {
        self.drops
    }

    pub(super) fn is_byte_level(&self) -> bool {
        self.byte_level
    }

    /// Id of a token by its text as the vocabulary writes it.
    pub fn token_id(&self, text: &str) -> Option<u32> {
        self.ids.get(text).copied()
    }

    /// Text of a token as the vocabulary writes it; empty for a hole.
    pub fn token_text(&self, id: u32) -> Option<&str> {
        self.tokens.get(id as usize).map(|t| t.text.as_str())
    }

    /// Whether this is a control token: it steers the model and is never made from a user's text.
    pub fn is_control(&self, id: u32) -> bool {
        self.tokens.get(id as usize).is_some_and(|t| t.kind == PieceKind::Control)
    }

    /// Number of ids, holes included: one more than the largest.
    pub fn vocab_size(&self) -> usize {
        self.tokens.len()
    }

    /// Begin-of-sequence id.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// End-of-sequence id.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// Whether prompts start with BOS by the tokenizer's own rule.
    pub fn adds_bos(&self) -> bool {
        self.add_bos && self.bos.is_some()
    }

    /// Ids that end an answer: EOS, end of turn, `<|im_end|>` and their like.
    pub fn stop_ids(&self) -> &[u32] {
        &self.stop_ids
    }

    /// The chat template that came with the tokenizer, if any.
    pub fn chat_template(&self) -> Option<&str> {
        self.chat_template.as_deref()
    }
}
