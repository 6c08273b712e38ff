//! Chat templates against transformers' Jinja: see `golden/make_templates.py`.
#![allow(clippy::unwrap_used, reason = "a test stops where its data is not as expected")]

use margay_prompt::text::{ChatTemplate, Message, RenderOptions, TemplateError};
use serde_json::Value;

#[test]
fn rendered_prompts_equal_transformers() {
    let golden: Value = serde_json::from_str(include_str!("golden/templates.json")).unwrap();
    let (mut rendered, mut refused) = (0, 0);
    for case in golden["cases"].as_array().unwrap() {
        let name = case["template"].as_str().unwrap();
        let template = ChatTemplate::new(golden["templates"][name].as_str().unwrap()).unwrap();
        let text = |m: &Value, key: &str| m[key].as_str().unwrap().to_owned();
        let messages = case["messages"].as_array().unwrap().iter();
        let messages: Vec<Message> =
            messages.map(|m| Message::text(text(m, "role"), text(m, "content"))).collect();
        let options = RenderOptions {
            add_generation_prompt: case["add_generation_prompt"].as_bool().unwrap(),
            bos_token: "<s>".to_owned(),
            eos_token: "</s>".to_owned(),
            ..RenderOptions::default()
        };
        let result = template.render(&messages, &options);
        if let Some(expected) = case["expected"].as_str() {
            // A template that does not show the conversation has nothing to compare.
            if !expected.contains(messages[0].content_text()) {
                assert!(matches!(result, Err(TemplateError::BadMessages { .. })), "{name}: {result:?}");
                continue;
            }
            assert_eq!(result.unwrap().display("<image>"), expected, "{name}");
            rendered += 1;
        } else {
            let message = case["refused"].as_str().unwrap().to_owned();
            assert_eq!(result.unwrap_err(), TemplateError::Refused { message }, "{name}");
            refused += 1;
        }
    }
    assert!(rendered >= 30 && refused >= 2, "{rendered} rendered, {refused} refused");
}

/// The text of a message made by [`Message::text`].
trait ContentText {
    fn content_text(&self) -> &str;
}

impl ContentText for Message {
    fn content_text(&self) -> &str {
        let [margay_prompt::text::Part::Text(text)] = self.content.as_slice() else { panic!("one text") };
        text
    }
}
