//! Each weight of a model with the format it is stored in.

use crate::{PackError, Place, Recipe};
use margay::ModelSource;
use margay_file::TensorInfo;
use margay_graph::{Op, Program, Role, WeightSpec};
use margay_model::RopeScaling;
use margay_quant::storable;
use margay_tensor::DType;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// A weight that will be written.
#[derive(Clone, Debug)]
pub(crate) struct Planned {
    pub(crate) spec: WeightSpec,
    pub(crate) info: TensorInfo,
    pub(crate) place: Place,
    /// All blocks of a row share one scale.
    pub(crate) per_channel: bool,
    /// Which of its columns lie elsewhere.
    pub(crate) columns: Columns,
}

/// Which columns of a weight of the source a weight that is written holds.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Columns {
    /// All.
    All,
    /// All but these, in whose place zeros stand.
    Without(Arc<[usize]>),
    /// These of the weight of that name.
    Only(String, Arc<[usize]>),
}

impl Planned {
    pub(crate) fn name(&self) -> &str {
        &self.spec.name
    }

    /// Name of the weight it is made of.
    pub(crate) fn made_of(&self) -> &str {
        match &self.columns {
            Columns::Only(name, _) => name,
            Columns::All | Columns::Without(_) => self.name(),
        }
    }

    /// Columns that are zeros here and kept elsewhere.
    pub(crate) fn without(&self) -> &[usize] {
        match &self.columns {
            Columns::Without(columns) => columns,
            Columns::All | Columns::Only(..) => &[],
        }
    }

    /// Bytes it takes.
    pub(crate) fn bytes(&self) -> u64 {
        self.info.size_bytes().unwrap_or(0) as u64
    }
}

/// A weight that could not be stored as asked: name, format taken, reason.
pub(crate) type Fallback = (String, DType, String);

/// Each weight of the programs in the order in which their nodes read them, which is the order they are written in.
pub(crate) fn plan(
    source: &ModelSource,
    programs: &[&Program],
    recipe: &Recipe,
    fallbacks: &mut Vec<Fallback>,
) -> Result<Vec<Planned>, PackError> {
    let mut planned = vec![];
    // Linear scaling is a key of its own; readers that know both would apply it twice.
    let linear = matches!(source.config.text.rope_scaling, RopeScaling::Linear(_));
    for program in programs {
        for (spec, mut place) in places(program) {
            if linear && spec.role == Role::RopeFactors {
                continue;
            }
            source.weights.check(&spec)?;
            let shape = source.weights.info(&spec.name).expect("invariant: just checked").shape;
            place.rank = shape.rank();
            let (taken, reason) = storable(recipe.format(&spec.name, &place), shape.row());
            if let Some(reason) = reason {
                fallbacks.push((spec.name.clone(), taken, reason.to_string()));
            }
            let per_channel = recipe.per_channel(&place) && taken == DType::Q8_0;
            planned.push(Planned {
                info: TensorInfo { dtype: taken, shape },
                spec,
                place,
                per_channel,
                columns: Columns::All,
            });
        }
    }
    Ok(planned)
}

/// Every weight of a program in the order in which nodes read them, and its place.
pub(crate) fn places(program: &Program) -> Vec<(WeightSpec, Place)> {
    let mut order = vec![];
    let mut seen = BTreeSet::new();
    let mut multiplied = BTreeSet::new();
    for node in program.nodes() {
        for id in node.op.weights() {
            if seen.insert(id) {
                order.push(id);
            }
        }
        if let Op::Linear(linear) = &node.op {
            multiplied.insert(linear.weight);
        }
    }
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let mut places = vec![];
    for id in order {
        let spec = program.weight(id);
        let layer = counts.entry(spec.role.name()).or_default();
        places.push((
            spec.clone(),
            Place {
                stage: program.stage(),
                role: spec.role,
                head: spec.role == Role::TokenEmbedding && multiplied.contains(&id),
                rank: spec.shape.rank(),
                layer: *layer,
                layers: 0,
            },
        ));
        *layer += 1;
    }
    for (spec, place) in &mut places {
        place.layers = counts[spec.role.name()];
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;
    use margay::Model;

    #[test]
    fn layers_are_counted_by_role() {
        let programs = Model::nano_source().unwrap().config.programs().unwrap();
        let places = places(&programs.text);
        assert_eq!(places.len(), programs.text.weights().len(), "every weight is read");
        let ups: Vec<_> = places.iter().filter(|(spec, _)| spec.role == Role::FfnUp).collect();
        for (at, (spec, place)) in ups.iter().enumerate() {
            assert!(spec.name.starts_with(&format!("blk.{at}.")));
            assert_eq!((place.layer, place.layers), (at, ups.len()));
        }
    }
}
