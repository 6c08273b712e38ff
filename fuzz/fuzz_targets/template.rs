//! Any text as a chat template: refused, or rendered, or stopped with an error, always in bounded time and memory.
#![no_main]

use libfuzzer_sys::fuzz_target;
use margay_prompt::text::{ChatTemplate, Message, RenderOptions};

fuzz_target!(|source: &str| {
    let Ok(template) = ChatTemplate::new(source) else { return };
    let messages = [Message::user(1, "{{ hello }}"), Message::text("assistant", "</s>"), Message::user(0, "")];
    let options = RenderOptions {
        add_generation_prompt: true,
        bos_token: "<s>".to_owned(),
        eos_token: "</s>".to_owned(),
        image_mark: "<image>".to_owned(),
        ..RenderOptions::default()
    };
    // What it says is its own business.
    let _ = template.render(&messages, &options);
});
