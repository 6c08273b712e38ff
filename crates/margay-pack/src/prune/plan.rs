//! Each weight of the pruned model: where it comes from, and what becomes of it.

use super::{PruneOptions, PruneTarget, choose::Chosen, cut::Cut, zeros::holds_zeros};
use crate::{
    PackError, Place, Recipe,
    plan::{Columns, Fallback, Planned, places},
};
use margay::{ModelSource, weight_format};
use margay_file::TensorInfo;
use margay_graph::{Op, Program, Role, WeightId, WeightSpec};
use margay_model::{ModelPrograms, RopeScaling};
use margay_quant::storable;
use margay_tensor::DType;
use std::collections::{BTreeMap, BTreeSet};

/// A weight that will be written.
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub(super) planned: Planned,
    /// As the model has it now.
    pub(super) old: WeightSpec,
    /// Its name there.
    pub(super) from: String,
    pub(super) cut: Cut,
    /// Some of its numbers become zero.
    pub(super) zeros: bool,
}

/// The matrices that lose weights: those of the blocks and of the projector. Tables, the head and routers stay whole, as
/// in the papers.
const ROLES: [Role; 8] = [
    Role::AttentionQ,
    Role::AttentionK,
    Role::AttentionV,
    Role::AttentionOut,
    Role::FfnGate,
    Role::FfnUp,
    Role::FfnDown,
    Role::Projector,
];

/// Each weight of the programs of the pruned model, in the order in which their nodes read them.
pub(super) fn plan(
    source: &ModelSource,
    programs: &[&Program],
    chosen: &Chosen,
    options: &PruneOptions<'_>,
    fallbacks: &mut Vec<Fallback>,
) -> Result<Vec<Item>, PackError> {
    let old = specs(&source.config.programs()?);
    // Linear scaling is a key of its own; readers that know both would apply it twice.
    let linear = matches!(source.config.text.rope_scaling, RopeScaling::Linear(_));
    let mut items = vec![];
    for program in programs {
        let lose = prunable(program);
        for (spec, mut place) in places(program) {
            if linear && spec.role == Role::RopeFactors {
                continue;
            }
            let from = chosen.former_name(&spec.name);
            let old = old.get(&from).ok_or_else(|| PackError::Prune { what: format!("no weight {from}") })?;
            source.weights.check(old)?;
            let cut = chosen.cuts.get(&from).cloned().unwrap_or_default();
            let stored = source.weights.info(&from).expect("invariant: just checked");
            let shape = if cut.is_none() { stored.shape } else { spec.shape.clone() };
            place.rank = shape.rank();
            let wanted = wanted_format(options.recipe, &spec.name, &place, stored.dtype);
            let (taken, reason) = storable(wanted, shape.row());
            if let Some(reason) = reason {
                fallbacks.push((spec.name.clone(), taken, reason.to_string()));
            }
            let zeros = match options.target {
                PruneTarget::Weights { stages, .. } => {
                    stages.contains(&program.stage()) && lose.contains(&spec.name)
                }
                PruneTarget::Parts(_) => false,
            };
            if zeros && !holds_zeros(taken) {
                let what = format!(
                    "{taken}, which {} is to be stored in, holds no exact zeros; choose another type with --type, \
                     for instance q8_0, q4_0 or f16",
                    spec.name
                );
                return Err(PackError::Prune { what });
            }
            let per_channel = options.recipe.is_some_and(|r| r.per_channel(&place)) && taken == DType::Q8_0;
            let info = TensorInfo { dtype: taken, shape };
            let planned = Planned { info, spec, place, per_channel, columns: Columns::All };
            items.push(Item { planned, old: old.clone(), from, cut, zeros });
        }
    }
    if let PruneTarget::Weights { stages, .. } = options.target {
        let here = programs.iter().any(|program| stages.contains(&program.stage()));
        if here && !items.iter().any(|item| item.zeros) {
            let names: Vec<_> = stages.iter().map(|stage| stage.name()).collect();
            let what = format!("no matrix of {} can lose weights", names.join(", "));
            return Err(PackError::Prune { what });
        }
    }
    Ok(items)
}

/// The format a weight is to be stored in, before what its rows allow: that of the recipe, else the one it has. Small
/// weights that every runtime reads as float32 become that.
pub(super) fn wanted_format(recipe: Option<&Recipe>, name: &str, place: &Place, stored: DType) -> DType {
    match recipe {
        Some(recipe) => recipe.format(name, place),
        None if weight_format(place.role, DType::F16, place.rank) == DType::F32 => DType::F32,
        None if margay_quant::format(stored).is_some() => stored,
        None => weight_format(place.role, DType::F16, place.rank),
    }
}

/// Every weight that the programs declare.
pub(super) fn specs(programs: &ModelPrograms) -> BTreeMap<String, WeightSpec> {
    let all = programs.encode.iter().chain(&programs.project).chain([&programs.text]);
    all.flat_map(|p| p.weights()).map(|spec| (spec.name.clone(), spec.clone())).collect()
}

/// Numbers and bytes of all weights as they are stored.
pub(super) fn original_size(source: &ModelSource, programs: &ModelPrograms) -> (u64, u64) {
    let infos = specs(programs).into_keys().filter_map(|name| source.weights.info(&name));
    infos.fold((0, 0), |(elements, bytes), info| {
        let count = info.shape.elements().unwrap_or(0) as u64;
        (elements + count, bytes + info.size_bytes().unwrap_or(0) as u64)
    })
}

/// Names of the weights of the program that can lose numbers.
fn prunable(program: &Program) -> BTreeSet<String> {
    let multiplied = |op: &Op| -> Vec<WeightId> {
        match op {
            Op::Linear(linear) => vec![linear.weight],
            Op::Experts(experts) => vec![experts.gate, experts.up, experts.down],
            _ => vec![],
        }
    };
    let specs = program.nodes().iter().flat_map(|node| multiplied(&node.op)).map(|id| program.weight(id));
    specs.filter(|spec| ROLES.contains(&spec.role)).map(|spec| spec.name.clone()).collect()
}
