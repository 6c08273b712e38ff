//! Which layers, heads and channels stay.

use super::{Amount, Kept, Parts, PruneMethod, PruneOptions, cut::Cut, plan::wanted_format};
use crate::{OnProgress, PackError, Place, Progress, plan::places, quantize::quant};
use margay::ModelSource;
use margay_graph::{Op, Program, Role, Stage, WeightSpec};
use margay_model::{ModelConfig, ModelPrograms};
use margay_quant::{
    Matrix, decode_tensor,
    pruning::{
        best,
        structured::{channel_scores, group_scores, head_scores},
    },
    storable,
};
use std::{collections::BTreeMap, sync::Arc};

/// Channels stay in multiples of this where they were, so that rows suit blocks and vector units.
const CHANNELS: usize = 32;

/// What the pruned model is.
pub(super) struct Chosen {
    pub(super) config: ModelConfig,
    /// Former number of each layer of the decoder.
    pub(super) layers: Vec<usize>,
    /// What stays of weights that lose rows or columns, by former names.
    pub(super) cuts: BTreeMap<String, Cut>,
    pub(super) kept: Vec<Kept>,
}

impl Chosen {
    /// Nothing goes.
    pub(super) fn everything(source: &ModelSource) -> Self {
        let layers = (0..source.config.text.layers).collect();
        Chosen { config: source.config.clone(), layers, cuts: BTreeMap::new(), kept: vec![] }
    }

    /// The name that a weight had before layers went.
    pub(super) fn former_name(&self, name: &str) -> String {
        let layer = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
        let former = layer.and_then(|(at, rest)| Some((self.layers.get(at.parse::<usize>().ok()?)?, rest)));
        former.map_or_else(|| name.to_owned(), |(at, rest)| format!("blk.{at}.{rest}"))
    }
}

/// Finds the parts that matter least.
pub(super) fn choose(
    source: &ModelSource,
    programs: &ModelPrograms,
    parts: &Parts,
    options: &PruneOptions<'_>,
    progress: OnProgress<'_>,
) -> Result<Chosen, PackError> {
    let mut chosen = Chosen::everything(source);
    if parts.layers > 0 {
        let all = source.config.text.layers;
        let gone = Amount::Count(parts.layers).of(all, "layers")?;
        let scores = influence(source, programs, options, &mut *progress)?;
        chosen.layers = best(&scores, all - gone);
        chosen.config.text.layers = chosen.layers.len();
    }
    let mut wanted = vec![];
    if let Some(amount) = parts.heads {
        wanted.push(heads(source, programs, amount, options)?);
    }
    if let Some(amount) = parts.channels {
        if source.config.text.mixture.is_some() {
            let what = "its feed-forward layers are experts, whose channels are not taken out; heads, layers and \
                        single weights can be";
            return Err(PackError::Prune { what: what.to_owned() });
        }
        wanted.push(channels(source, &programs.text, source.config.text.ffn, amount, options)?);
    }
    if let (Some(amount), Some(vision), Some(encode)) =
        (parts.encoder_channels, &source.config.vision, &programs.encode)
    {
        let refuse = || PackError::Prune {
            what: format!(
                "the feed-forward layers of the tower {} keep their width",
                vision.tower.tower().id
            ),
        };
        let ffn = vision.tower.ffn().ok_or_else(refuse)?;
        wanted.push(channels(source, encode, ffn, amount, options)?);
    }
    for group in &mut wanted {
        // Layers that go are asked nothing.
        if group.stage == Stage::Text {
            group.layers.retain(|layer| chosen.layers.contains(&layer.number));
        }
    }
    let gradients = gradients(source, &wanted, options, &mut *progress)?;
    let of = wanted.iter().map(|group| group.layers.len()).sum();
    let mut done = 0;
    for group in wanted {
        for layer in &group.layers {
            let step =
                Progress { tensor: &layer.out.name, done, of, done_bytes: done as u64, of_bytes: of as u64 };
            if progress(&step).is_break() {
                return Err(PackError::Stopped);
            }
            done += 1;
            let scores = match gradients.get(&layer.out.name) {
                Some(scores) => scores.clone(),
                None => layer_scores(source, &group, layer, options)?,
            };
            let kept = best(&scores, group.keep);
            layer.cut(&group, &kept, &mut chosen.cuts);
            chosen.kept.push(Kept {
                what: group.what,
                stage: group.stage.name(),
                layer: layer.number,
                parts: kept,
            });
        }
        let kept = group.keep * group.unit;
        match (group.what, group.stage) {
            ("heads", _) => {
                let text = &mut chosen.config.text;
                if group.shares {
                    text.kv_heads = group.keep;
                }
                text.heads = kept;
            }
            (_, Stage::Text) => chosen.config.text.ffn = kept,
            _ => {
                if let Some(vision) = &mut chosen.config.vision {
                    vision.tower =
                        vision.tower.with_ffn(kept).expect("invariant: a tower that tells its width");
                }
            }
        }
    }
    chosen.kept.sort_by_key(|kept| (kept.stage, kept.what, kept.layer));
    Ok(chosen)
}

/// Parts of one kind in all layers of a program.
struct Group {
    what: &'static str,
    stage: Stage,
    /// Parts that stay of each layer, and all there are.
    keep: usize,
    all: usize,
    /// Heads, or channels, of a part.
    unit: usize,
    /// Columns of `out` of a part.
    columns: usize,
    /// Keys and values go with the part.
    shares: bool,
    layers: Vec<Layer>,
}

/// Where the parts of one layer lie.
struct Layer {
    number: usize,
    /// Its columns are the parts'.
    out: WeightSpec,
    /// Their rows are the parts', with how many rows each has; the vectors are biases.
    into: Vec<(WeightSpec, usize)>,
}

impl Layer {
    fn cut(&self, group: &Group, kept: &[usize], cuts: &mut BTreeMap<String, Cut>) {
        let runs =
            |each: usize| -> Arc<[usize]> { kept.iter().flat_map(|p| p * each..(p + 1) * each).collect() };
        cuts.entry(self.out.name.clone()).or_default().cols = Some(runs(group.columns));
        for (spec, each) in &self.into {
            cuts.entry(spec.name.clone()).or_default().rows = Some(runs(*each));
        }
    }
}

fn heads(
    source: &ModelSource,
    programs: &ModelPrograms,
    amount: Amount,
    options: &PruneOptions<'_>,
) -> Result<Group, PackError> {
    let text = &source.config.text;
    let program = &programs.text;
    if normed_together(program) {
        let what = "its norms go over the queries of all heads together, so that each head needs the others";
        return Err(PackError::Prune { what: what.to_owned() });
    }
    // One head of keys and values for all queries cannot go; queries can.
    let shares = text.kv_heads > 1;
    let unit = if shares { text.heads / text.kv_heads } else { 1 };
    let gone = match (amount, amount.of(text.heads, "heads")?) {
        (Amount::Share(_), gone) => gone / unit,
        (Amount::Count(_), gone) if gone.is_multiple_of(unit) => gone / unit,
        (Amount::Count(_), gone) => {
            let what =
                format!("{gone} heads are no whole groups of {unit}, which share their keys and values");
            return Err(PackError::Prune { what });
        }
    };
    let all = text.heads / unit;
    let columns = unit * text.head_dim;
    let find = parts_of(program);
    let mut layers = vec![];
    for (out, place) in with_role(program, Role::AttentionOut) {
        let of = |role: Role, each: usize| find(role, place.layer).into_iter().map(move |spec| (spec, each));
        let mut into: Vec<_> = of(Role::AttentionQ, columns).collect();
        if shares {
            into.extend(of(Role::AttentionK, text.head_dim));
            into.extend(of(Role::AttentionV, text.head_dim));
        }
        layers.push(Layer { number: place.layer, out, into });
    }
    let multiple = block(source, program, Role::AttentionOut, options);
    let mut keep = all - gone;
    while keep < all && !(keep * columns).is_multiple_of(multiple) {
        keep += 1;
    }
    none_goes(keep, all, &format!("{amount} of {} heads", text.heads), unit, multiple)?;
    Ok(Group { what: "heads", stage: Stage::Text, keep, all, unit, columns, shares, layers })
}

fn channels(
    source: &ModelSource,
    program: &Program,
    ffn: usize,
    amount: Amount,
    options: &PruneOptions<'_>,
) -> Result<Group, PackError> {
    let gone = amount.of(ffn, "channels")?;
    let find = parts_of(program);
    let mut layers = vec![];
    for (out, place) in with_role(program, Role::FfnDown) {
        let into = [Role::FfnUp, Role::FfnGate].into_iter().flat_map(|role| find(role, place.layer));
        let into: Vec<_> = into.map(|spec| (spec, 1)).collect();
        if out.shape.row() != ffn || into.is_empty() {
            let what = format!("{} is {}, expected {ffn} columns", out.name, out.shape);
            return Err(PackError::Prune { what });
        }
        layers.push(Layer { number: place.layer, out, into });
    }
    let multiple = block(source, program, Role::FfnDown, options);
    let multiple = if ffn.is_multiple_of(CHANNELS) { multiple.max(CHANNELS) } else { multiple };
    let keep = (ffn - gone).next_multiple_of(multiple).min(ffn);
    none_goes(keep, ffn, &format!("{amount} of {ffn} channels"), 1, multiple)?;
    Ok(Group {
        what: "channels",
        stage: program.stage(),
        keep,
        all: ffn,
        unit: 1,
        columns: 1,
        shares: false,
        layers,
    })
}

/// What stays is rounded up to whole groups and blocks, which may be everything.
fn none_goes(keep: usize, all: usize, asked: &str, unit: usize, multiple: usize) -> Result<(), PackError> {
    if keep < all {
        return Ok(());
    }
    let units = if unit > 1 { format!("whole groups of {unit} and ") } else { String::new() };
    let what = format!(
        "{asked}, in {units}rows that are multiples of {multiple}, is none; take more, or a --type of smaller blocks"
    );
    Err(PackError::Prune { what })
}

/// Numbers of the largest block that the weights of this role will be stored in.
fn block(source: &ModelSource, program: &Program, role: Role, options: &PruneOptions<'_>) -> usize {
    let elements = |(spec, place): (WeightSpec, Place)| {
        let stored = source.weights.info(&spec.name)?;
        let wanted = wanted_format(options.recipe, &spec.name, &place, stored.dtype);
        // A format that these rows do not take now is none that they must fit.
        Some(storable(wanted, spec.shape.row()).0.block_elements())
    };
    with_role(program, role).into_iter().filter_map(elements).max().unwrap_or(1)
}

fn with_role(program: &Program, role: Role) -> Vec<(WeightSpec, Place)> {
    places(program).into_iter().filter(|(spec, _)| spec.role == role).collect()
}

/// The matrix of a role in a layer, and its bias.
fn parts_of(program: &Program) -> impl Fn(Role, usize) -> Vec<WeightSpec> {
    let mut biases: BTreeMap<String, WeightSpec> = BTreeMap::new();
    for node in program.nodes() {
        if let Op::Linear(linear) = &node.op
            && let Some(bias) = linear.bias
        {
            biases.insert(program.weight(linear.weight).name.clone(), program.weight(bias).clone());
        }
    }
    let places = places(program);
    move |role, layer| {
        let found = places.iter().filter(|(spec, place)| spec.role == role && place.layer == layer);
        let with_bias = found.flat_map(|(spec, _)| [Some(spec.clone()), biases.get(&spec.name).cloned()]);
        with_bias.flatten().collect()
    }
}

/// Whether one norm goes over the queries of all heads (and then over the keys).
fn normed_together(program: &Program) -> bool {
    let projected = |value| {
        program.nodes().iter().find(|node| node.output == value).and_then(|node| match &node.op {
            Op::Linear(linear) => Some(program.weight(linear.weight)),
            _ => None,
        })
    };
    program.nodes().iter().any(|node| {
        let Op::Norm(_) = &node.op else { return false };
        let norm = node.op.weights().first().map(|id| program.weight(*id).shape.row());
        let from = node.inputs.first().and_then(|value| projected(*value));
        from.is_some_and(|spec| spec.role == Role::AttentionQ && spec.shape.dims().first().copied() == norm)
    })
}

/// The scores of the parts of one layer by magnitude, or by what its output is given.
fn layer_scores(
    source: &ModelSource,
    group: &Group,
    layer: &Layer,
    options: &PruneOptions<'_>,
) -> Result<Vec<f32>, PackError> {
    let out = numbers(source, &layer.out)?;
    let cols = layer.out.shape.row();
    let input = input_squares(&layer.out, options)?;
    let seen = input.is_some();
    let input = input.unwrap_or_else(|| vec![1.0; cols]);
    let fail = |e| quant(&layer.out.name, e);
    let down = Matrix::new(&out, out.len() / cols.max(1), cols).map_err(fail)?;
    if group.what == "heads" {
        let heads = head_scores(down, group.all * group.unit, &input).map_err(fail)?;
        return group_scores(&heads, group.all).map_err(fail);
    }
    // What passes through a channel says more than the rows that lead to it.
    let into: Vec<Vec<f32>> = match seen {
        true => vec![],
        false => layer
            .into
            .iter()
            .filter(|(spec, _)| spec.shape.rank() > 1)
            .map(|(spec, _)| numbers(source, spec))
            .collect::<Result<_, _>>()?,
    };
    let rows = down.cols;
    let into: Vec<Matrix<'_>> = into
        .iter()
        .map(|values| Matrix::new(values, rows, values.len() / rows.max(1)))
        .collect::<Result<_, _>>()
        .map_err(fail)?;
    channel_scores(&into, down, &input).map_err(fail)
}

fn numbers(source: &ModelSource, spec: &WeightSpec) -> Result<Vec<f32>, PackError> {
    let tensor = source.weights.declared(spec)?;
    let values = decode_tensor(&tensor).map_err(|e| quant(&spec.name, e))?;
    tensor.storage().release();
    Ok(values)
}

/// The mean squares of what the weight is given; `None` for a method that does not ask.
fn input_squares(spec: &WeightSpec, options: &PruneOptions<'_>) -> Result<Option<Vec<f32>>, PackError> {
    let (PruneMethod::Wanda, Some(calibration)) = (options.method, options.calibration) else {
        return Ok(None);
    };
    let bad = |what: String| PackError::Calibration { what };
    let stats = calibration.input(&spec.name)?;
    let stats = stats
        .filter(|stats| stats.tokens() > 0)
        .ok_or_else(|| bad(format!("the calibration knows nothing of the input of {}", spec.name)))?;
    if stats.columns != spec.shape.row() {
        return Err(bad(format!(
            "the input of {} has {} columns, the weight {}",
            spec.name,
            stats.columns,
            spec.shape.row()
        )));
    }
    Ok(Some(stats.importance()))
}

#[cfg(feature = "calibrate")]
fn influence(
    source: &ModelSource,
    programs: &ModelPrograms,
    options: &PruneOptions<'_>,
    progress: OnProgress<'_>,
) -> Result<Vec<f32>, PackError> {
    super::influence::of_layers(source, programs, options.prompts, &mut |step| {
        super::as_progress(step, progress)
    })
}

#[cfg(not(feature = "calibrate"))]
fn influence(
    _: &ModelSource,
    _: &ModelPrograms,
    options: &PruneOptions<'_>,
    _: OnProgress<'_>,
) -> Result<Vec<f32>, PackError> {
    Err(super::no_reference(options))
}

/// First-order scores of the parts of each layer, by the name of its output matrix; none for other methods.
#[cfg(feature = "calibrate")]
fn gradients(
    source: &ModelSource,
    groups: &[Group],
    options: &PruneOptions<'_>,
    progress: OnProgress<'_>,
) -> Result<BTreeMap<String, Vec<f32>>, PackError> {
    if options.method != PruneMethod::Taylor || groups.is_empty() {
        return Ok(BTreeMap::new());
    }
    let layers = groups.iter().flat_map(|group| group.layers.iter().map(move |layer| (group, layer)));
    let names: Vec<(&str, usize)> =
        layers.map(|(group, layer)| (layer.out.name.as_str(), group.all)).collect();
    super::gradients::of_parts(source, options.prompts, &names, &mut |step| {
        super::as_progress(step, progress)
    })
}

#[cfg(not(feature = "calibrate"))]
fn gradients(
    _: &ModelSource,
    groups: &[Group],
    options: &PruneOptions<'_>,
    _: OnProgress<'_>,
) -> Result<BTreeMap<String, Vec<f32>>, PackError> {
    match options.method == PruneMethod::Taylor && !groups.is_empty() {
        true => Err(super::no_reference(options)),
        false => Ok(BTreeMap::new()),
    }
}
