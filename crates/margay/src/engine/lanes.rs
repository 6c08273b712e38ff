//! The two sides of an engine, so that both can run at the same time.

use super::{Engine, TextCall, positions};
use crate::{Error, prune::Decoder};
use margay_graph::{Bindings, Cancel, Executable, InputData, State, Sym};
use margay_model::Feed;

/// The tower.
pub(crate) struct VisionLane<'e> {
    tower: &'e mut Box<dyn Executable>,
}

/// The decoder.
pub(crate) struct TextLane<'e> {
    text: &'e mut Decoder,
    rows: &'e mut Vec<i32>,
    positions: &'e mut Vec<i32>,
}

impl Engine {
    /// Both sides; the vision side must be prepared.
    pub(crate) fn lanes(&mut self) -> (VisionLane<'_>, TextLane<'_>) {
        let vision = self.vision.as_mut().expect("invariant: the vision side is prepared before it runs");
        let text = TextLane { text: &mut self.text, rows: &mut self.rows, positions: &mut self.positions };
        (VisionLane { tower: &mut vision.encode }, text)
    }

    /// The decoder alone.
    pub(crate) fn text_lane(&mut self) -> TextLane<'_> {
        TextLane { text: &mut self.text, rows: &mut self.rows, positions: &mut self.positions }
    }
}

impl VisionLane<'_> {
    /// A tile through the whole tower; [`Engine::encoded`] then has its patch features.
    pub(crate) fn encode(&mut self, tile: &Feed<'_>, cancel: &Cancel) -> Result<(), Error> {
        let inputs = tile.inputs(self.tower.program(), &tile.pixels);
        Ok(self.tower.run(&tile.bindings, &inputs, None, cancel)?)
    }
}

impl TextLane<'_> {
    /// As [`Engine::run_text`], whose logits [`Engine::logits`] then has.
    pub(crate) fn run(
        &mut self,
        call: &TextCall<'_>,
        outputs: usize,
        state: &mut dyn State,
        cancel: &Cancel,
    ) -> Result<(), Error> {
        positions(self.text.program(), call.position, call.ids.len(), call.places, self.positions);
        self.rows.clear();
        self.rows.extend((call.ids.len() - outputs..call.ids.len()).map(|row| row as i32));
        let bindings = Bindings::new()
            .with(Sym::Tokens, call.ids.len())
            .with(Sym::Outputs, outputs)
            .with(Sym::Visual, call.visual.len() / call.width)
            .with(Sym::Prefix, call.prefix);
        let all = [
            InputData::I32(call.ids),
            InputData::I32(self.positions),
            InputData::I32(self.rows),
            InputData::F32(call.visual),
        ];
        // A text model has no `visual` input.
        let inputs = &all[..self.text.program().inputs().len()];
        Ok(self.text.run(&bindings, inputs, Some(state), cancel)?)
    }
}
