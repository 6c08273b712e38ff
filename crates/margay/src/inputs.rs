//! A prompt as the programs of a model take it, for tools that run them by themselves.

use crate::{
    Error, Image, ModelSource,
    engine::{positions, prefix_of},
    session::one_picture,
};
use margay_graph::{Bindings, Sym};
use margay_prompt::{
    image::{Pixels, preprocess},
    layout::{Layout, PictureLayout},
    text::Message,
};

/// What the encode and text programs are given for a question; what the project program is given follows from what the
/// encode program made.
#[derive(Debug)]
pub struct PromptInputs {
    /// The tiles of all pictures in order.
    pub tiles: Vec<Pixels>,
    /// What each picture becomes in the prompt.
    pub pictures: Vec<PictureLayout>,
    /// Ids of the prompt and of the answer behind it, negative for visual rows. `[T]`
    pub ids: Vec<i32>,
    /// Positions of those tokens as the text program takes them.
    pub positions: Vec<i32>,
    /// Tokens of the prompt alone.
    pub prompt_tokens: usize,
    /// Tokens at the start that see one another.
    pub prefix: usize,
}

impl PromptInputs {
    /// Visual rows of all pictures.
    pub fn visual_rows(&self) -> usize {
        self.pictures.iter().map(PictureLayout::visual_tokens).sum()
    }

    /// Sizes of the text program for all tokens at once, of which `outputs` give logits.
    pub fn text_bindings(&self, outputs: usize) -> Bindings {
        Bindings::new()
            .with(Sym::Prefix, self.prefix)
            .with(Sym::Tokens, self.ids.len())
            .with(Sym::Outputs, outputs)
            .with(Sym::Visual, self.visual_rows())
    }
}

impl ModelSource {
    /// A question about pictures by the model's own template, and the tokens of an answer behind it.
    ///
    /// # Errors
    /// As [`crate::Session::ask`].
    pub fn prompt_inputs(
        &self,
        images: &[Image],
        question: &str,
        answer: &[u32],
    ) -> Result<PromptInputs, Error> {
        if question.trim().is_empty() && images.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        one_picture(&self.config, images.len())?;
        let pictures: Vec<_> =
            images.iter().map(|image| self.picture_layout(image)).collect::<Result<_, _>>()?;
        let mut tiles = vec![];
        for image in images {
            let vision = self.config.vision.as_ref();
            let vision = vision.ok_or_else(|| Error::NoVision { model: self.config.name.clone() })?;
            let cut = preprocess(image.picture()?, &vision.image)
                .map_err(|source| Error::Image { place: image.name.clone(), source })?;
            tiles.extend(cut);
        }
        let parts = self.render(&[Message::user(images.len(), question)])?;
        let sequence = Layout::default().place(&self.tokenizer, &parts, &pictures)?;
        let (mut places, next) = sequence.places();
        let prompt_tokens = sequence.ids.len();
        if prompt_tokens == 0 {
            return Err(Error::EmptyPrompt);
        }
        let mut ids = sequence.ids;
        let prefix = prefix_of(&self.config, &ids);
        // Vocabularies are capped far below the sign bit, and answers by the context.
        places.extend((0..answer.len()).map(|at| [next + at as i32; 3]));
        ids.extend(answer.iter().map(|id| *id as i32));
        let mut at = vec![];
        positions(&self.config.programs()?.text, 0, ids.len(), &places, &mut at);
        Ok(PromptInputs { tiles, pictures, ids, positions: at, prompt_tokens, prefix })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Model;

    #[test]
    fn an_answer_stands_behind_its_question() {
        let source = Model::nano_source().unwrap();
        let image = Image::filled(60, 40, [200, 30, 30]).unwrap();
        let bare = source.prompt_inputs(std::slice::from_ref(&image), "What is this?", &[]).unwrap();
        let with = source.prompt_inputs(&[image], "What is this?", &[7, 9]).unwrap();
        assert_eq!(bare.ids[..], with.ids[..with.prompt_tokens]);
        assert_eq!(with.ids[with.prompt_tokens..], [7, 9]);
        assert_eq!(with.positions.len(), with.ids.len());
        assert_eq!(bare.ids.iter().filter(|id| **id < 0).count(), bare.visual_rows());
        assert_eq!((bare.tiles.len(), bare.pictures.len()), (1, 1));
        assert!(matches!(source.prompt_inputs(&[], " ", &[]), Err(Error::EmptyPrompt)));
    }
}
