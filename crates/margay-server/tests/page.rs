//! The page in a real browser, where there is one.
#![allow(clippy::unwrap_used, reason = "a helper of a test may fail as the test does")]
#![allow(clippy::print_stdout, reason = "what is skipped says why")]

#[path = "support/browser.rs"]
mod browser;
mod support;

use browser::Browser;
use margay_server::ServerOptions;
use serde_json::json;
use std::path::PathBuf;
use support::Site;

fn example(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../examples/images").join(name).canonicalize().unwrap()
}

/// Pastes or drops a picture of one colour that is made in the page.
const DROPPED: &str = "(async () => {
    const canvas = document.createElement('canvas'); canvas.width = 80; canvas.height = 60;
    const paint = canvas.getContext('2d'); paint.fillStyle = '#c22'; paint.fillRect(0, 0, 80, 60);
    const blob = await new Promise((done) => canvas.toBlob(done));
    const data = new DataTransfer(); data.items.add(new File([blob], 'red.png', { type: 'image/png' }));
    document.dispatchEvent(KIND);
})()";

#[test]
fn a_picture_is_asked_about_and_the_answer_is_kept() {
    let Some(mut page) = Browser::start() else { return };
    let site = Site::nano(ServerOptions::default());
    page.size(1280, 860);
    page.dark(false);
    page.open(&format!("http://{}/", site.address));
    page.until("document.getElementById('model').textContent");
    page.until("document.getElementById('memory').textContent.endsWith('B')");
    page.picture("welcome-light");

    page.choose("#file", &[example("street.png"), example("shapes.png")]);
    page.until("document.querySelectorAll('#pictures img').length === 2");
    page.value(&DROPPED.replace("KIND", "new ClipboardEvent('paste', { clipboardData: data })"));
    page.until("document.querySelectorAll('#pictures img').length === 3");
    page.value(&DROPPED.replace("KIND", "new DragEvent('drop', { dataTransfer: data, cancelable: true })"));
    page.until("document.querySelectorAll('#pictures img').length === 4");
    for left in [3, 2, 1] {
        page.click("#pictures li:last-child button");
        page.until(&format!("document.querySelectorAll('#pictures img').length === {left}"));
    }
    assert_eq!(page.text("document.activeElement.id"), "question", "focus goes on to the question");

    page.write("What does the");
    page.press("Enter", 8);
    assert_eq!(page.text("document.getElementById('question').value"), "What does the\n");
    page.value("document.getElementById('question').value = ''");
    page.write("What does the sign say?");
    page.picture("composing-light");
    page.press("Enter", 0);
    page.until("document.querySelector('.answer:not(.waiting) .words')?.textContent");
    let said = page.text("document.querySelector('.answer .words').textContent");
    assert!(said.contains("BAR"), "{said}");
    assert!(page.text("document.getElementById('live').textContent").starts_with("Answer: "));
    let stages = page.text(
        "[...document.querySelectorAll('.legend li')].map((li) => li.textContent.split(' ')[0]).join()",
    );
    assert!(stages.starts_with("preprocess,encode,project,prefill"), "{stages}");
    let facts = page.text("document.querySelector('.answer .foot span').textContent");
    assert!(facts.contains("first token after") && facts.contains("visual tokens"), "{facts}");
    assert_eq!(page.value("document.querySelector('.copy').hidden"), json!(false));
    page.picture("answer-light");
    page.dark(true);
    page.picture("answer-dark");

    // A second question goes on about the picture.
    page.write("How many people are there?");
    page.press("Enter", 0);
    page.until("document.querySelectorAll('.answer:not(.waiting)').length === 2");
    page.size(360, 740);
    page.picture("answer-phone-dark");
    let wide = page.value("document.documentElement.scrollWidth");
    assert!(wide.as_u64().unwrap() <= 360, "nothing is wider than a narrow phone: {wide}");
    page.dark(false);
    page.click("#menu");
    page.until("document.getElementById('side').classList.contains('shown')");
    std::thread::sleep(std::time::Duration::from_millis(400));
    page.picture("history-phone-light");
    page.press("Escape", 0);
    page.until("!document.getElementById('side').classList.contains('shown')");
    page.size(1280, 860);

    let kept = page.text("localStorage.getItem('margay.conversations')");
    assert!(kept.contains("What does the sign say?") && kept.len() < 20_000, "{} bytes", kept.len());
    page.open(&format!("http://{}/", site.address));
    page.until("document.querySelectorAll('#history li').length === 1");
    page.click("#history .open");
    page.until("document.querySelectorAll('#talk .answer').length === 2");
    assert_eq!(page.text("document.querySelector('.answer .words').textContent"), said);
    page.picture("restored-light");
    page.click("#new");
    page.until("!document.getElementById('welcome').hidden");

    let nameless = page.value(
        "[...document.querySelectorAll('button, input, textarea')].filter((e) => e.tabIndex >= 0 && !e.hidden \
         && !(e.getAttribute('aria-label') || e.textContent.trim() || e.labels?.[0]?.textContent.trim())).map((e) => e.outerHTML)",
    );
    assert_eq!(nameless, json!([]), "every control has a name");
    assert_eq!(page.complaints, [""; 0]);
}

#[test]
fn the_camera_gives_a_picture_and_escape_stops_an_answer() {
    let Some(mut page) = Browser::start() else { return };
    let site = Site::endless(ServerOptions {
        limits: margay_server::Limits { tokens: 60_000, ..Default::default() },
        ..Default::default()
    });
    page.size(1280, 860);
    page.open(&format!("http://{}/", site.address));
    page.until("document.getElementById('model').textContent");
    page.value("localStorage.setItem('margay.settings', JSON.stringify({ tokens: 60000 }))");
    page.click("#camera");
    page.until("document.getElementById('shutter').open && document.getElementById('video').videoWidth");
    page.picture("camera-light");
    page.click("#snap");
    page.until(
        "document.querySelectorAll('#pictures img').length === 1 && !document.getElementById('shutter').open",
    );
    page.write("What is this?");
    page.press("Enter", 0);
    page.until("document.querySelector('.answer.waiting .words')?.textContent.length > 20");
    assert_eq!(site.handle.load().running, 1);
    // A picture of a busy machine takes longer than some answers.
    page.picture("running-light");
    page.press("Escape", 0);
    page.until("!document.querySelector('.answer.waiting')");
    site.idle();
    assert!(page.text("document.querySelector('.answer .foot span').textContent").contains("stopped"));
    assert_eq!(page.value("document.getElementById('send').hidden"), json!(false));
    assert_eq!(page.complaints, [""; 0]);
}

#[test]
fn the_page_asks_for_the_key_and_says_what_is_wrong() {
    let Some(mut page) = Browser::start() else { return };
    let site = Site::nano(ServerOptions { key: Some("secret".to_owned()), ..Default::default() });
    page.size(1280, 860);
    page.open(&format!("http://{}/", site.address));
    page.until("document.getElementById('door').open");
    page.picture("key-light");
    page.write("wrong");
    page.press("Enter", 0);
    page.until("document.getElementById('door').open && !document.getElementById('wrong-key').hidden");
    page.write("secret");
    page.press("Enter", 0);
    page.until("document.getElementById('model').textContent");
    assert_eq!(page.text("sessionStorage.getItem('margay.key')"), "\"secret\"");
    assert_eq!(page.value("localStorage.getItem('margay.key')"), json!(null));
    // A question that cannot be answered says why, and can be mended.
    page.value(&format!("document.getElementById('question').value = {:?}.repeat(9000)", "word "));
    page.value("document.getElementById('question').focus()");
    page.press("Enter", 0);
    page.until("document.querySelector('.answer.failed')");
    let why = page.text("document.querySelector('.answer.failed .words').textContent");
    assert!(why.contains("tokens"), "{why}");
    assert!(page.text("document.getElementById('question').value").starts_with("word"));
    page.value("document.getElementById('question').value = 'Hello?'");
    page.value("document.getElementById('question').focus()");
    page.press("Enter", 0);
    page.until("document.querySelectorAll('.answer').length === 2 && !document.querySelector('.waiting')");
    assert_eq!(page.value("document.querySelectorAll('.answer.failed').length"), json!(1));
}
