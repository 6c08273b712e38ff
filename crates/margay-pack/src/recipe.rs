//! Recipes: which format each weight takes, by its role and its place, never by its name.
//!
//! A recipe is a TOML file of rules, of which the first that fits a weight decides:
//!
//! ```toml
//! about = "one line for people"
//!
//! [[rule]]
//! stage = "text"                      # encode, project, text; several as a list; all where it is left out
//! role = ["attention_v", "ffn_down"]  # roles, or matrix, attention, ffn; every matrix and kernel where it is left out
//! from = 0.0                          # of the layers: from the first ...
//! to = 0.125                          # ... up to an eighth of them
//! type = "q6_k"
//! scale = "channel"                   # of q8_0: one scale for all blocks of a row, as integer units want it
//! ```
//!
//! What no rule fits, and what has to stay float (norms, biases, positions), is stored as `margay convert` stores it.

use crate::PackError;
use margay::{vision_format, weight_format};
use margay_graph::{Program, Role, Stage, WeightSpec};
use margay_tensor::DType;
use serde::Deserialize;
use std::{collections::BTreeMap, path::Path};

/// The recipes inside the program: id and file.
const SHIPPED: &[(&str, &str)] = &[
    ("mobile-int4", include_str!("../recipes/mobile-int4.toml")),
    ("npu-int8", include_str!("../recipes/npu-int8.toml")),
    ("quality", include_str!("../recipes/quality.toml")),
    ("tiny", include_str!("../recipes/tiny.toml")),
];

/// Largest recipe file that is read.
const MOST_BYTES: u64 = 1 << 20;

/// Roles that one word stands for.
const GROUPS: &[(&str, &[Role])] = &[
    ("attention", &[Role::AttentionQ, Role::AttentionK, Role::AttentionV, Role::AttentionOut]),
    ("ffn", &[Role::FfnGate, Role::FfnUp, Role::FfnDown]),
];

/// Every linear layer and table.
const MATRIX: &str = "matrix";

/// Where a weight stands in its model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Place {
    /// The program that reads it.
    pub stage: Stage,
    /// What it is for.
    pub role: Role,
    /// A table that is the head as well: rules take it for [`Role::Output`].
    pub head: bool,
    /// Dimensions.
    pub rank: usize,
    /// Which of the weights of this role and stage it is, from 0: its layer.
    pub layer: usize,
    /// How many there are.
    pub layers: usize,
}

/// Which format each weight takes.
#[derive(Clone, Debug, PartialEq)]
pub struct Recipe {
    /// Short id, or the file's name.
    pub id: String,
    /// One line for people.
    pub about: String,
    kind: Kind,
}

#[derive(Clone, Debug, PartialEq)]
enum Kind {
    /// One format for each side.
    Plain { text: DType, vision: DType },
    /// The first that fits.
    Rules(Vec<Rule>),
    /// Chosen weight by weight; others are float.
    Chosen(BTreeMap<String, DType>),
}

#[derive(Clone, Debug, PartialEq)]
struct Rule {
    stages: Vec<Stage>,
    /// `None` is every matrix and kernel.
    roles: Option<Vec<Role>>,
    from: f64,
    to: f64,
    dtype: DType,
    per_channel: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    about: String,
    #[serde(default)]
    rule: Vec<FileRule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileRule {
    #[serde(default)]
    stage: Option<Words>,
    #[serde(default)]
    role: Option<Words>,
    #[serde(default)]
    from: Option<f64>,
    #[serde(default)]
    to: Option<f64>,
    r#type: String,
    #[serde(default)]
    scale: Option<String>,
}

/// One word or a list of them.
#[derive(Deserialize)]
#[serde(untagged)]
enum Words {
    One(String),
    More(Vec<String>),
}

impl Words {
    fn iter(&self) -> std::slice::Iter<'_, String> {
        match self {
            Words::One(word) => std::slice::from_ref(word).iter(),
            Words::More(words) => words.iter(),
        }
    }
}

impl Recipe {
    /// Ids and lines of the recipes inside the program.
    pub fn shipped() -> impl Iterator<Item = Recipe> {
        SHIPPED.iter().map(|(id, text)| Self::parse(id, text).expect("invariant: shipped recipes are sound"))
    }

    /// One format for the decoder's matrices, and one for those of the vision side ([`margay::vision_format`] of the
    /// decoder's unless given).
    pub fn plain(text: DType, vision: Option<DType>) -> Self {
        let vision = vision.unwrap_or_else(|| vision_format(text));
        let id = if vision == text { text.to_string() } else { format!("{text}+{vision}") };
        Recipe {
            about: format!("{text} in the decoder, {vision} on the vision side"),
            id,
            kind: Kind::Plain { text, vision },
        }
    }

    /// These formats for weights of these names, float for all others.
    pub(crate) fn chosen(id: &str, about: String, formats: BTreeMap<String, DType>) -> Self {
        Recipe { id: id.to_owned(), about, kind: Kind::Chosen(formats) }
    }

    /// The recipe of that id, else the plain one of that type, else the file of that name.
    ///
    /// # Errors
    /// [`PackError::Recipe`] where there is none, or the file is none.
    pub fn named(name: &str) -> Result<Self, PackError> {
        if let Some((id, text)) = SHIPPED.iter().find(|(id, _)| *id == name) {
            return Self::parse(id, text);
        }
        if let Some(dtype) = DType::from_name(name).filter(|dtype| margay_quant::format(*dtype).is_some()) {
            return Ok(Self::plain(dtype, None));
        }
        let path = Path::new(name);
        if path.extension().is_none_or(|ending| ending != "toml") {
            let known: Vec<_> = SHIPPED.iter().map(|(id, _)| *id).collect();
            let what = format!(
                "there is none of that name; there are {}, any type, and files that end in .toml",
                known.join(", ")
            );
            return Err(bad(name, what));
        }
        let text = margay_file::read_file(path, MOST_BYTES).map_err(|e| bad(name, e.to_string()))?;
        let text = String::from_utf8(text).map_err(|_| bad(name, "is no UTF-8 text".into()))?;
        Self::parse(name, &text)
    }

    /// Reads a recipe.
    ///
    /// # Errors
    /// [`PackError::Recipe`] naming the line, or the word that is not known.
    pub fn parse(id: &str, text: &str) -> Result<Self, PackError> {
        let file: File = toml::from_str(text).map_err(|e| bad(id, e.to_string()))?;
        let rules = file
            .rule
            .iter()
            .enumerate()
            .map(|(at, rule)| rule.read().map_err(|what| bad(id, format!("rule {}: {what}", at + 1))));
        let rules = rules.collect::<Result<Vec<_>, _>>()?;
        Ok(Recipe { id: id.to_owned(), about: file.about, kind: Kind::Rules(rules) })
    }

    /// The format that the weight of that name and place is to take, before what its rows allow.
    pub fn format(&self, name: &str, place: &Place) -> DType {
        let float = || weight_format(place.role, DType::F16, place.rank);
        match &self.kind {
            Kind::Plain { text, vision } => {
                let dtype = if place.stage == Stage::Text { *text } else { *vision };
                weight_format(place.role, dtype, place.rank)
            }
            Kind::Rules(rules) => rules.iter().find(|r| r.fits(place)).map_or_else(float, |r| r.dtype),
            Kind::Chosen(formats) => formats.get(name).copied().unwrap_or_else(float),
        }
    }

    /// What each weight of a program is stored in, by name: [`Recipe::format`], and what its rows allow.
    pub fn formats(&self, program: &Program) -> BTreeMap<String, DType> {
        let stored = |(spec, place): (WeightSpec, Place)| {
            let wanted = self.format(&spec.name, &place);
            let dtype = margay_quant::storable(wanted, spec.shape.row()).0;
            (spec.name, dtype)
        };
        crate::plan::places(program).into_iter().map(stored).collect()
    }

    /// Whether all blocks of a row share one scale.
    pub fn per_channel(&self, place: &Place) -> bool {
        match &self.kind {
            Kind::Rules(rules) => rules.iter().find(|r| r.fits(place)).is_some_and(|r| r.per_channel),
            Kind::Plain { .. } | Kind::Chosen(_) => false,
        }
    }

    /// A number for `general.file_type`, where one format says it.
    pub(crate) fn main_type(&self, stage: Stage) -> Option<DType> {
        match &self.kind {
            Kind::Plain { text, vision } => Some(if stage == Stage::Text { *text } else { *vision }),
            Kind::Rules(_) | Kind::Chosen(_) => None,
        }
    }
}

impl FileRule {
    fn read(&self) -> Result<Rule, String> {
        let stages = match &self.stage {
            None => Stage::ALL.to_vec(),
            Some(words) => words.iter().map(|word| stage(word)).collect::<Result<_, _>>()?,
        };
        let roles = match &self.role {
            None => None,
            Some(words) => {
                let roles = words.iter().map(|word| roles(word)).collect::<Result<Vec<_>, _>>()?;
                Some(roles.concat())
            }
        };
        let dtype = DType::from_name(&self.r#type).filter(|dtype| margay_quant::format(*dtype).is_some());
        let dtype = dtype.ok_or_else(|| {
            let known: Vec<_> = margay_quant::FORMATS.iter().map(|f| f.dtype().name()).collect();
            format!("type {:?} is not known; known are {}", self.r#type, known.join(", "))
        })?;
        if let Some(role) = roles.iter().flatten().find(|role| stays_float(**role) && dtype.is_block()) {
            return Err(format!(
                "{} weights stay float, not {dtype}: runtimes add them as they are",
                role.name()
            ));
        }
        let per_channel = match self.scale.as_deref() {
            None | Some("block") => false,
            Some("channel") if dtype == DType::Q8_0 => true,
            Some("channel") => return Err(format!("scale channel is for q8_0, not {dtype}")),
            Some(other) => return Err(format!("scale {other:?} is not known; known are block and channel")),
        };
        let (from, to) = (self.from.unwrap_or(0.0), self.to.unwrap_or(1.0));
        if !(0.0..=1.0).contains(&from) || !(0.0..=1.0).contains(&to) || from >= to {
            return Err(format!("from {from} to {to} is no part of the layers, which lie from 0 to 1"));
        }
        Ok(Rule { stages, roles, from, to, dtype, per_channel })
    }
}

impl Rule {
    fn fits(&self, place: &Place) -> bool {
        let part = place.layer as f64 / place.layers.max(1) as f64;
        let meant = if place.head { Role::Output } else { place.role };
        let role = match &self.roles {
            Some(roles) => roles.contains(&meant),
            None => !stays_float(meant),
        };
        role && self.stages.contains(&place.stage) && (self.from..self.to).contains(&part)
    }
}

/// Small weights that every runtime reads as float32, and columns that were kept because of what rounding does to them.
fn stays_float(role: Role) -> bool {
    weight_format(role, DType::F16, 2) == DType::F32 || role == Role::OutlierColumns
}

fn stage(word: &str) -> Result<Stage, String> {
    Stage::ALL.into_iter().find(|stage| stage.name() == word).ok_or_else(|| {
        format!("stage {word:?} is not known; known are {}", Stage::ALL.map(Stage::name).join(", "))
    })
}

fn roles(word: &str) -> Result<Vec<Role>, String> {
    if word == MATRIX {
        return Ok(Role::ALL.into_iter().filter(|role| role.is_matrix()).collect());
    }
    if let Some((_, roles)) = GROUPS.iter().find(|(name, _)| *name == word) {
        return Ok(roles.to_vec());
    }
    Role::ALL.into_iter().find(|role| role.name() == word).map(|role| vec![role]).ok_or_else(|| {
        let groups = GROUPS.iter().map(|(name, _)| *name);
        let known: Vec<_> = [MATRIX].into_iter().chain(groups).chain(Role::ALL.map(Role::name)).collect();
        format!("role {word:?} is not known; known are {}", known.join(", "))
    })
}

fn bad(name: &str, what: String) -> PackError {
    PackError::Recipe { name: name.to_owned(), what }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(stage: Stage, role: Role, layer: usize) -> Place {
        Place { stage, role, head: false, rank: 2, layer, layers: 8 }
    }

    #[test]
    fn the_first_rule_that_fits_decides_and_floats_stay_float() {
        let recipes: Vec<Recipe> = Recipe::shipped().collect();
        assert_eq!(recipes.len(), SHIPPED.len());
        let mobile = &recipes[0];
        for (stage, role, dtype) in [
            (Stage::Encode, Role::PatchEmbedding, DType::F16),
            (Stage::Encode, Role::AttentionQ, DType::Q8_0),
            (Stage::Encode, Role::Norm, DType::F32),
            (Stage::Project, Role::Projector, DType::F16),
            (Stage::Project, Role::Convolution, DType::F16),
            (Stage::Text, Role::FfnDown, DType::Q4_0),
            (Stage::Text, Role::Output, DType::Q6_K),
            (Stage::Text, Role::Router, DType::F32),
        ] {
            assert_eq!(mobile.format("x", &place(stage, role, 0)), dtype, "{stage:?} {role:?}");
        }
        assert!(mobile.per_channel(&place(Stage::Encode, Role::AttentionQ, 0)));
        assert!(!mobile.per_channel(&place(Stage::Text, Role::AttentionQ, 0)));
        let quality = &recipes[2];
        let up = |layer| quality.format("x", &place(Stage::Text, Role::FfnUp, layer));
        assert_eq!([0, 1, 6, 7].map(up), [DType::Q6_K, DType::Q5_K, DType::Q5_K, DType::Q6_K]);
    }

    #[test]
    fn plain_recipes_are_what_convert_has_always_done() {
        let recipe = Recipe::plain(DType::Q4_K, None);
        for role in Role::ALL {
            let text = recipe.format("x", &place(Stage::Text, role, 3));
            assert_eq!(text, weight_format(role, DType::Q4_K, 2));
            let vision = recipe.format("x", &place(Stage::Encode, role, 3));
            assert_eq!(vision, weight_format(role, DType::F16, 2));
        }
        assert_eq!(Recipe::named("q4_k").unwrap(), recipe);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let about = "about = \"x\"\n[[rule]]\n";
        for (rule, part) in [
            ("type = \"q9\"", "q9"),
            ("type = \"q4_0\"\nrole = \"nose\"", "nose"),
            ("type = \"q4_0\"\nstage = \"hear\"", "hear"),
            ("type = \"q4_0\"\nrole = \"norm\"", "stay float"),
            ("type = \"q4_0\"\nfrom = 0.5\nto = 0.25", "0.25"),
            ("type = \"q4_0\"\nname = \"blk.0\"", "name"),
            ("type = \"i32\"", "i32"),
            ("type = \"q4_0\"\nscale = \"channel\"", "q8_0"),
            ("type = \"q8_0\"\nscale = \"row\"", "row"),
            ("role = \"output\"", "type"),
        ] {
            let error = Recipe::parse("mine", &format!("{about}{rule}")).unwrap_err().to_string();
            assert!(error.contains(part) && error.contains("mine"), "{error}");
        }
        assert!(Recipe::named("nothing").unwrap_err().to_string().contains("mobile-int4"));
        assert!(Recipe::named("nothing.toml").unwrap_err().to_string().contains("nothing.toml"));
    }
}
