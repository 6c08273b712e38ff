//! The answer flow over many questions at once: all pictures through the tower, then the projector, then all texts
//! through the decoder, each program node by node.

use crate::PackError;
use margay::{ModelSource, PromptInputs};
use margay_graph::{Dim, InputData, Program, Stage, Sym, Value};
use margay_model::{Feed, ModelPrograms};
use margay_reference::{WalkInput, Walker, walk};
use std::{collections::BTreeMap, iter::zip};

/// Who goes along through all programs.
pub(crate) trait Flowing: Walker<Error = PackError> {
    /// Called before a program is walked.
    fn begin(&mut self, program: &Program, rows: Rows);
}

/// Which rows of a value are visual tokens, of each input of a walk.
#[derive(Clone, Debug)]
pub(crate) struct Rows {
    stage: Stage,
    /// Of the text program, each input's tokens; and the tokens whose logits are asked for.
    tokens: Vec<Vec<bool>>,
    outputs: Vec<Vec<bool>>,
}

impl Rows {
    /// All visual.
    fn vision(stage: Stage) -> Self {
        Rows { stage, tokens: vec![], outputs: vec![] }
    }

    /// Flags of the `count` rows of that value in that input.
    pub(crate) fn visual(&self, sample: usize, value: &Value, count: usize) -> Vec<bool> {
        if self.stage != Stage::Text {
            return vec![true; count];
        }
        let asked = value.dims.first() == Some(&Dim::from(Sym::Outputs));
        let flags = if asked { &self.outputs[sample] } else { &self.tokens[sample] };
        // Values of other heights belong to no token.
        if flags.len() == count { flags.clone() } else { vec![false; count] }
    }
}

/// The programs without the outputs that only a trace wants.
pub(crate) fn bare_programs(source: &ModelSource) -> Result<ModelPrograms, PackError> {
    let mut programs = source.config.programs()?;
    programs.text =
        programs.text.with_outputs(|name| name == LOGITS).map_err(margay_model::ModelError::from)?;
    Ok(programs)
}

pub(crate) const LOGITS: &str = "logits";

/// The programs that [`see`] walks: none where there are no pictures.
pub(crate) fn seeing<'p>(programs: &'p ModelPrograms, prompts: &[PromptInputs]) -> Vec<&'p Program> {
    let pictures = prompts.iter().any(|prompt| !prompt.tiles.is_empty());
    match (&programs.encode, &programs.project) {
        (Some(encode), Some(project)) if pictures => vec![encode, project],
        _ => vec![],
    }
}

/// The programs that [`flow`] walks.
pub(crate) fn walked<'p>(programs: &'p ModelPrograms, prompts: &[PromptInputs]) -> Vec<&'p Program> {
    [seeing(programs, prompts), vec![&programs.text]].concat()
}

/// Walks all programs; gives each input's logits, [rows, vocabulary], of its text tokens, where `logits` says so.
pub(crate) fn flow<F: Flowing>(
    source: &ModelSource,
    programs: &ModelPrograms,
    prompts: &[PromptInputs],
    logits: bool,
    walker: &mut F,
) -> Result<Vec<Vec<f32>>, PackError> {
    let visual = see(source, programs, prompts, walker)?;
    let flags = |prompt: &PromptInputs| prompt.ids.iter().map(|id| *id < 0).collect::<Vec<bool>>();
    // What follows a visual token is of no interest: nobody samples there.
    let asked: Vec<Vec<i32>> = prompts
        .iter()
        .map(|prompt| zip(0.., &prompt.ids).filter(|(_, id)| **id >= 0).map(|(at, _)| at).collect())
        .collect();
    let rows = Rows {
        stage: Stage::Text,
        tokens: prompts.iter().map(flags).collect(),
        outputs: asked.iter().map(|rows| vec![false; rows.len()]).collect(),
    };
    let inputs: Vec<WalkInput<'_>> = zip(prompts, zip(&asked, &visual))
        .map(|(prompt, (asked, visual))| {
            let all = [
                InputData::I32(&prompt.ids),
                InputData::I32(&prompt.positions),
                InputData::I32(asked),
                InputData::F32(visual),
            ];
            // A text model has no `visual` input.
            let inputs = all[..programs.text.inputs().len()].to_vec();
            WalkInput { bindings: prompt.text_bindings(asked.len()), inputs }
        })
        .collect();
    walker.begin(&programs.text, rows);
    let wanted: &[&str] = if logits { &[LOGITS] } else { &[] };
    let outputs = walk(&programs.text, &inputs, wanted, walker)?;
    Ok(outputs.into_iter().map(|mut outputs| outputs.remove(LOGITS).unwrap_or_default()).collect())
}

/// The visual rows of each prompt, [V, E].
pub(crate) fn see<F: Flowing>(
    source: &ModelSource,
    programs: &ModelPrograms,
    prompts: &[PromptInputs],
    walker: &mut F,
) -> Result<Vec<Vec<f32>>, PackError> {
    let none = || prompts.iter().map(|_| vec![]).collect();
    let (Some(encode), Some(project)) = (&programs.encode, &programs.project) else { return Ok(none()) };
    let Some(vision) = source.config.vision.as_ref() else { return Ok(none()) };
    let feeds: Vec<Feed<'_>> =
        prompts.iter().flat_map(|prompt| &prompt.tiles).map(|tile| vision.tower.feed(tile)).collect();
    if feeds.is_empty() {
        return Ok(none());
    }
    let inputs: Vec<WalkInput<'_>> = feeds
        .iter()
        .map(|feed| WalkInput { bindings: feed.bindings, inputs: feed.inputs(encode, &feed.pixels) })
        .collect();
    walker.begin(encode, Rows::vision(Stage::Encode));
    let features = walk(encode, &inputs, &["encode"], walker)?;
    drop(inputs);
    let features: Vec<Vec<f32>> = features.into_iter().map(|f| only(f, "encode")).collect();

    // One input of the projector for each tile, or for all tiles of a picture that are stitched.
    let grid = vision.tower.grid();
    let mut tile = 0;
    let mut stitched: BTreeMap<usize, Stitched> = BTreeMap::new();
    let mut owners = vec![];
    for (owner, prompt) in prompts.iter().enumerate() {
        for picture in &prompt.pictures {
            let tiles = picture.tiles();
            match picture.stitch() {
                None => owners.extend((tile..tile + tiles).map(|tile| (owner, tile))),
                Some(stitch) => {
                    owners.push((owner, tile));
                    stitched.insert(
                        tile,
                        Stitched {
                            features: features[tile..tile + tiles].concat(),
                            // Below the limits of a picture's tiles, far from what an i32 counts.
                            map: stitch.map(grid).map(|row| row as i32).collect(),
                            size: stitch.size(grid).map(|side| side as i32),
                            bindings: vision.stitched(stitch),
                        },
                    );
                }
            }
            tile += tiles;
        }
    }
    let input = |(_, tile): &(usize, usize)| match stitched.get(tile) {
        Some(s) => WalkInput {
            bindings: s.bindings,
            inputs: vec![InputData::F32(&s.features), InputData::I32(&s.map), InputData::I32(&s.size)],
        },
        None => WalkInput {
            bindings: feeds[*tile].bindings,
            inputs: feeds[*tile].inputs(project, &features[*tile]),
        },
    };
    let inputs: Vec<WalkInput<'_>> = owners.iter().map(input).collect();
    walker.begin(project, Rows::vision(Stage::Project));
    let projected = walk(project, &inputs, &["project"], walker)?;
    let mut visual: Vec<Vec<f32>> = none();
    for ((owner, _), rows) in zip(&owners, projected) {
        visual[*owner].extend(only(rows, "project"));
    }
    Ok(visual)
}

/// The tiles of a picture that are projected as one.
struct Stitched {
    features: Vec<f32>,
    map: Vec<i32>,
    size: [i32; 2],
    bindings: margay_graph::Bindings,
}

fn only(mut outputs: BTreeMap<String, Vec<f32>>, name: &str) -> Vec<f32> {
    outputs.remove(name).expect("invariant: a walk gives the outputs asked for")
}
