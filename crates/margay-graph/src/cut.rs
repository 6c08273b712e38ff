//! A program in two parts, one behind the other.

use crate::{GraphError, Node, Op, Program, ValueId, passes::remove_dead};

impl Program {
    /// Cuts a program at the output of that name: the first part computes it and nothing else, the second takes it as an
    /// input, behind its others, and computes all other outputs. Each part has the inputs, weights and cache slots that it
    /// reads; no node is in both, so that a weight is only where two nodes read it. Cut before
    /// [`crate::passes::optimize`].
    ///
    /// # Errors
    /// [`GraphError::Program`] where there is no such output or no other, where it is an input, and where the second part
    /// would read something else that the first one computes.
    pub fn cut(&self, at: &str) -> Result<(Program, Program), GraphError> {
        let wrong = |what: &str| GraphError::Program {
            what: format!("the {} program cannot be cut at {at}: {what}", self.stage.name()),
        };
        let value = self.output(at).ok_or_else(|| wrong("it has no such output"))?;
        let made = |node: &Node| node.output == value && node.op != Op::Input;
        let maker = self.nodes.iter().position(made).ok_or_else(|| wrong("it is no node's result"))?;
        let first = Program { outputs: vec![(at.to_owned(), value)], ..self.clone() };
        let mut second = self.clone();
        second.outputs.retain(|(name, _)| name != at);
        if second.outputs.is_empty() {
            return Err(wrong("nothing would be left to compute behind it"));
        }
        second.inputs.push((at.to_owned(), value));
        second.nodes[maker] = Node { op: Op::Input, inputs: vec![], output: value };
        let wanted = second.wanted();
        let crosses =
            |node: &&Node| wanted[node.output.index()] && !matches!(node.op, Op::Input | Op::Param { .. });
        if let Some(node) = second.nodes[..maker].iter().find(crosses) {
            return Err(wrong(&format!("what {} gives before it is read behind it", node.op.name())));
        }
        Ok((first.part(), second.part()))
    }

    /// For each value whether an output needs it.
    fn wanted(&self) -> Vec<bool> {
        let mut wanted = vec![false; self.values.len()];
        self.outputs.iter().for_each(|(_, id)| wanted[id.index()] = true);
        for node in self.nodes.iter().rev().filter(|node| !node.inputs.is_empty()) {
            if wanted[node.output.index()] {
                node.inputs.iter().for_each(|input| wanted[input.index()] = true);
            }
        }
        wanted
    }

    /// Without the inputs, nodes, weights and cache slots that no output needs.
    fn part(mut self) -> Program {
        let wanted = self.wanted();
        let is_wanted = |id: &ValueId| wanted[id.index()];
        self.inputs.retain(|(_, id)| is_wanted(id));
        let mut part = remove_dead(&self);
        let caches = std::mem::take(&mut part.caches);
        let mut slot_of = vec![None; caches.len()];
        for node in &mut part.nodes {
            if let Op::Attention(attention) = &mut node.op
                && let Some(slot) = &mut attention.cache
            {
                let known = slot_of[*slot].unwrap_or(part.caches.len());
                if known == part.caches.len() {
                    part.caches.push(caches[*slot]);
                }
                slot_of[*slot] = Some(known);
                *slot = known;
            }
        }
        part
    }
}

#[cfg(test)]
mod tests {
    use crate::{Attention, Builder, GraphError, Mask, Program, Role, Stage, Sym, passes};

    /// Two layers that attend, each with a weight of its own, over an embedding whose table is the head, too.
    fn program(skip: bool) -> Program {
        let mut b = Builder::new(Stage::Text);
        let ids = b.input_i32("ids", Sym::Tokens);
        let rows = b.input_i32("rows", Sym::Outputs);
        let table = b.weight("table", [9, 8], Role::TokenEmbedding);
        let embedded = b.embed(table, ids, None).unwrap();
        b.output("hidden.0", embedded);
        let mut x = embedded;
        for layer in 0..2 {
            let weight = b.weight(&format!("blk.{layer}"), [8, 8], Role::AttentionOut);
            let kv_heads = 1 + layer;
            let kv = b.weight(&format!("kv.{layer}"), [4 * kv_heads, 8], Role::AttentionK);
            let kv = b.linear(x, kv, None).unwrap();
            let attention =
                Attention { heads: 2, kv_heads, head_dim: 4, scale: 1.0, mask: Mask::Causal, cache: None };
            let h = b.attention([x, kv, kv], attention, true).unwrap();
            let h = b.linear(h, weight, None).unwrap();
            x = b.add(x, h).unwrap();
            b.output(&format!("hidden.{}", layer + 1), x);
        }
        if skip {
            x = b.add(x, embedded).unwrap();
        }
        let x = b.gather_rows(x, rows).unwrap();
        let logits = b.linear(x, table, None).unwrap();
        b.output("logits", logits);
        b.finish().unwrap()
    }

    fn names(list: &[(String, crate::ValueId)]) -> Vec<&str> {
        list.iter().map(|(name, _)| name.as_str()).collect()
    }

    #[test]
    fn two_parts_hold_every_node_once_and_only_what_they_read() {
        let whole = program(false).with_outputs(|name| ["hidden.1", "logits"].contains(&name)).unwrap();
        let (head, tail) = whole.cut("hidden.1").unwrap();
        assert_eq!((names(head.inputs()), names(head.outputs())), (vec!["ids"], vec!["hidden.1"]));
        assert_eq!((names(tail.inputs()), names(tail.outputs())), (vec!["rows", "hidden.1"], vec!["logits"]));
        let weights = |program: &Program| {
            program.weights().iter().map(|weight| weight.name.clone()).collect::<Vec<_>>()
        };
        assert_eq!(weights(&head), ["table", "kv.0", "blk.0"].map(str::to_owned).to_vec());
        assert_eq!(weights(&tail).len(), 3, "the table is the head's, too: {:?}", weights(&tail));
        assert_eq!([head.caches().len(), tail.caches().len()], [1, 1]);
        assert_eq!([head.caches()[0].kv_heads, tail.caches()[0].kv_heads], [1, 2], "each its own slot");
        let ops = |program: &Program| program.nodes().iter().filter(|node| !node.inputs.is_empty()).count();
        assert_eq!(ops(&head) + ops(&tail), ops(&whole));
        // What is left can be optimized, and each slot is one of its own program.
        for part in [passes::optimize(&head), passes::optimize(&tail)] {
            assert!(part.to_string().contains("attention"), "{part}");
        }
    }

    #[test]
    fn what_cannot_be_cut_is_refused() {
        let whole = program(false);
        let cut = |program: &Program, at: &str| match program.cut(at) {
            Err(GraphError::Program { what }) => what,
            other => panic!("{other:?}"),
        };
        assert!(cut(&whole, "hidden.9").contains("no such output"));
        let only = whole.with_outputs(|name| name == "logits").unwrap();
        assert!(cut(&only, "logits").contains("nothing would be left"));
        // The embedding as an output is computed before the cut.
        assert!(cut(&whole, "hidden.1").contains("embed"));
        let skipping = program(true).with_outputs(|name| ["hidden.1", "logits"].contains(&name)).unwrap();
        assert!(cut(&skipping, "hidden.1").contains("read behind it"));
    }
}
