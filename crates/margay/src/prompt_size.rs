//! What a conversation would take, without computing it.

use crate::{
    Content, Error, Model, Turn,
    session::{check_turns, message, one_picture},
};
use margay_prompt::layout::Layout;

/// Tokens of a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PromptSize {
    /// All of them.
    pub tokens: usize,
    /// Those of pictures among them.
    pub visual_tokens: usize,
}

impl Model {
    /// Tokens that a conversation's prompt has. Whether it fits the context is not asked.
    ///
    /// # Errors
    /// As [`crate::Session::ask_turns`], but for [`Error::PromptTooLong`].
    pub fn prompt_size(&self, turns: &[Turn]) -> Result<PromptSize, Error> {
        check_turns(turns)?;
        let content = turns.iter().flat_map(|turn| &turn.content);
        let images =
            content.filter_map(|part| if let Content::Image(image) = part { Some(image) } else { None });
        let layouts =
            images.map(|image| self.source().picture_layout(image)).collect::<Result<Vec<_>, _>>()?;
        one_picture(self.config(), layouts.len())?;
        let messages: Vec<_> = turns.iter().map(message).collect();
        let parts = self.source().render(&messages)?;
        let sequence = Layout::default().place(self.tokenizer(), &parts, &layouts)?;
        Ok(PromptSize { tokens: sequence.ids.len(), visual_tokens: sequence.visual_tokens() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AskOptions, Image};

    #[test]
    fn the_size_is_that_of_the_prompt_that_is_computed() {
        let model = Model::nano().unwrap();
        let picture = Image::filled(64, 48, [200, 30, 30]).unwrap();
        let content = vec![Content::Image(picture), Content::Text("What is this?".to_owned())];
        let turns = [Turn { role: "user".to_owned(), content }];
        let size = model.prompt_size(&turns).unwrap();
        let ask = AskOptions { max_tokens: 1, ..AskOptions::default() };
        let report = model.session().unwrap().ask_turns(&turns, &ask).unwrap().report().unwrap();
        assert_eq!(size.tokens, report.stages.prefill_tokens);
        assert_eq!(size.visual_tokens, report.stages.visual_tokens);
        assert!(size.visual_tokens > 0);
        assert!(matches!(model.prompt_size(&[]), Err(Error::Turns { .. })));
    }
}
