//! `margay pull`: a model from a Hugging Face compatible hub.

use crate::{Outcome, interrupt::Interrupt};
use clap::Args;

const AFTER_HELP: &str = "\
EXAMPLES:
  margay pull mtgv/MobileVLM_V2-1.7B                a checkpoint: config, vocabulary, safetensors
  margay pull OWNER/REPO:model-q4_k.gguf            a GGUF file, and the mmproj beside it
  margay pull OWNER/REPO:q4_k                       a part of its name, where no other file has it
  margay pull OWNER/REPO@REVISION                   a branch, tag or commit
  margay run hf:OWNER/REPO street.png               pulled where it is not there yet

What is fetched goes to the cache that Hugging Face's own tools use, and is taken from there. A
download that broke off goes on where it stopped; every file is compared with the hub's checksum.

ENVIRONMENT:
  HF_HOME         the cache is hub/ below it; ~/.cache/huggingface unless set (HF_HUB_CACHE: itself)
  HF_TOKEN        opens repositories that are not for everyone; else the file HF_HOME/token
  HF_ENDPOINT     another hub than https://huggingface.co
  HF_HUB_OFFLINE  1: use the cache alone
  SSL_CERT_FILE   certificates (PEM) that vouch for the hub, in place of the public ones";

/// Fetch a model from a Hugging Face compatible hub
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Pull {
    /// The repository, and the file where there are several models
    #[arg(value_name = "OWNER/REPO[:FILE]")]
    model: String,
    /// Print one JSON object
    #[arg(long)]
    #[cfg_attr(not(feature = "hub"), allow(dead_code, reason = "there is nothing to print"))]
    json: bool,
}

impl Pull {
    #[cfg(not(feature = "hub"))]
    pub(crate) fn run(self, _: &Interrupt) -> anyhow::Result<Outcome> {
        crate::hub::local(format!("{}{}", crate::hub::PREFIX, self.model).as_ref())?;
        Ok(Outcome::Done)
    }

    #[cfg(feature = "hub")]
    pub(crate) fn run(self, interrupt: &Interrupt) -> anyhow::Result<Outcome> {
        use crate::{Usage, environment, hub, interrupt::Late, output, progress::Meter};
        use margay::{Cancel, rooms::observe::report::bytes};
        use margay_hub::{HubError, pull};
        use std::ops::ControlFlow;

        let reference = self.model.strip_prefix(hub::PREFIX).unwrap_or(&self.model);
        let model = reference.parse().map_err(|e: HubError| Usage(e.to_string()))?;
        let cancel = Cancel::new();
        let watch = interrupt.watch(cancel.clone(), Late::Leave);
        let mut meter = Meter::start(self.json);
        let result = pull(&environment::hub()?, &model, &mut |step| {
            if cancel.is_cancelled() {
                return ControlFlow::Break(());
            }
            meter.update(step.done_bytes, step.of_bytes, step.file);
            ControlFlow::Continue(())
        });
        drop(meter);
        let pulled = match result {
            Err(HubError::Stopped) if watch.pressed() => {
                output::aside("stopped; the same command goes on from here");
                return Ok(Outcome::Interrupted);
            }
            result => result?,
        };
        drop(watch);
        if self.json {
            let files = pulled.files.iter().map(|file| {
                serde_json::json!({
                    "name": file.name, "bytes": file.size_bytes, "received_bytes": file.received_bytes,
                })
            });
            output::json(&serde_json::json!({
                "path": pulled.path,
                "commit": pulled.commit,
                "files": files.collect::<Vec<_>>(),
                "notes": pulled.notes,
            }))?;
            return Ok(Outcome::Done);
        }
        let received: u64 = pulled.files.iter().map(|file| file.received_bytes).sum();
        pulled.notes.iter().for_each(|note| output::aside(&output::harmless(note)));
        let files = pulled.files.len();
        output::aside(&format!("{files} files of commit {}, {} received", pulled.commit, bytes(received)));
        output::line(&output::harmless(&pulled.path.display().to_string()))?;
        Ok(Outcome::Done)
    }
}
