//! Rewrites that keep the meaning: fusion and dead code.
//!
//! Each pass takes a program and gives a new one; [`optimize`] runs them in order. What a pass fuses, every backend
//! must understand; a fused op means exactly what its parts meant.

use crate::{Node, Op, Program, ValueId};

/// All passes, in order.
pub fn optimize(program: &Program) -> Program {
    let mut program = remove_dead(program);
    fuse_glu(&mut program);
    fuse_activation(&mut program);
    fuse_residual(&mut program);
    remove_dead(&program)
}

/// `act(a) * b` becomes one gated op.
fn fuse_glu(program: &mut Program) {
    let uses = program.use_counts();
    let makers = makers(program);
    for at in 0..program.nodes.len() {
        let node = &program.nodes[at];
        if node.op != Op::Mul || program.value(node.inputs[0]).dims != program.value(node.inputs[1]).dims {
            continue;
        }
        let (gate, up) = (node.inputs[0], node.inputs[1]);
        let Some(maker) = makers[gate.index()].filter(|_| uses[gate.index()] == 1) else { continue };
        if let Op::Activation(act) = program.nodes[maker].op {
            let x = program.nodes[maker].inputs[0];
            program.nodes[at].op = Op::Glu(act);
            program.nodes[at].inputs = vec![x, up];
        }
    }
}

/// `act(linear(x))` becomes the linear layer's own activation.
fn fuse_activation(program: &mut Program) {
    let uses = program.use_counts();
    let makers = makers(program);
    for at in 0..program.nodes.len() {
        let Op::Activation(act) = program.nodes[at].op else { continue };
        let x = program.nodes[at].inputs[0];
        let Some(maker) = makers[x.index()].filter(|_| uses[x.index()] == 1) else { continue };
        if let Op::Linear(linear) = &program.nodes[maker].op
            && linear.activation.is_none()
            && !linear.residual
        {
            let mut linear = linear.clone();
            linear.activation = Some(act);
            let inputs = program.nodes[maker].inputs.clone();
            program.nodes[at] = Node { op: Op::Linear(linear), inputs, output: program.nodes[at].output };
        }
    }
}

/// `x + linear(h)` becomes a linear layer that adds x last.
fn fuse_residual(program: &mut Program) {
    let uses = program.use_counts();
    let makers = makers(program);
    for at in 0..program.nodes.len() {
        if program.nodes[at].op != Op::Add {
            continue;
        }
        let (a, b) = (program.nodes[at].inputs[0], program.nodes[at].inputs[1]);
        if program.value(a).dims != program.value(b).dims {
            continue;
        }
        // Either side may be the layer; the other is the residual.
        for (layer, residual) in [(b, a), (a, b)] {
            let Some(maker) = makers[layer.index()].filter(|_| uses[layer.index()] == 1) else { continue };
            if let Op::Linear(linear) = &program.nodes[maker].op
                && !linear.residual
            {
                let mut linear = linear.clone();
                linear.residual = true;
                let inputs = vec![program.nodes[maker].inputs[0], residual];
                program.nodes[at] = Node { op: Op::Linear(linear), inputs, output: program.nodes[at].output };
                break;
            }
        }
    }
}

/// Nodes whose result nobody reads go; values and weights are numbered anew.
pub(crate) fn remove_dead(program: &Program) -> Program {
    let mut wanted = vec![false; program.values.len()];
    for (_, id) in program.outputs.iter().chain(&program.inputs) {
        wanted[id.index()] = true;
    }
    for node in program.nodes.iter().rev() {
        if wanted[node.output.index()] {
            for input in &node.inputs {
                wanted[input.index()] = true;
            }
        }
    }
    let mut value_of = vec![None; program.values.len()];
    let mut weight_of = vec![None; program.weights.len()];
    let mut kept = Program { nodes: vec![], values: vec![], weights: vec![], ..program.clone() };
    for node in program.nodes.iter().filter(|n| wanted[n.output.index()]) {
        let output = ValueId(kept.values.len());
        value_of[node.output.index()] = Some(output);
        kept.values.push(program.value(node.output).clone());
        let mut op = node.op.clone();
        for weight in op.weights_mut() {
            let at = weight_of[weight.index()].unwrap_or_else(|| {
                kept.weights.push(program.weight(*weight).clone());
                crate::WeightId(kept.weights.len() - 1)
            });
            weight_of[weight.index()] = Some(at);
            *weight = at;
        }
        let inputs = node.inputs.iter().map(|v| renamed(&value_of, *v)).collect();
        kept.nodes.push(Node { op, inputs, output });
    }
    for (_, id) in kept.inputs.iter_mut().chain(&mut kept.outputs) {
        *id = renamed(&value_of, *id);
    }
    kept
}

fn renamed(value_of: &[Option<ValueId>], id: ValueId) -> ValueId {
    value_of[id.index()].expect("invariant: a value is made before it is read")
}

/// For each value the index of the node that makes it.
fn makers(program: &Program) -> Vec<Option<usize>> {
    let mut makers = vec![None; program.values.len()];
    for (at, node) in program.nodes.iter().enumerate() {
        makers[node.output.index()] = Some(at);
    }
    makers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Activation, Builder, Role, Stage, Sym};

    #[test]
    fn gated_block_fuses_to_three_nodes_and_an_input() {
        let mut b = Builder::new(Stage::Text);
        let x = b.input_f32("x", [Sym::Tokens.into(), 8.into()]);
        let [gate, up] = ["gate", "up"].map(|n| b.weight(n, [16, 8], Role::FfnUp));
        let down = b.weight("down", [8, 16], Role::FfnDown);
        let unused = b.weight("unused", [8, 8], Role::FfnDown);
        b.linear(x, unused, None).unwrap();
        let g = b.linear(x, gate, None).unwrap();
        let g = b.activation(g, Activation::Silu).unwrap();
        let u = b.linear(x, up, None).unwrap();
        let h = b.mul(g, u).unwrap();
        let h = b.linear(h, down, None).unwrap();
        let y = b.add(x, h).unwrap();
        b.output("y", y);
        let program = optimize(&b.finish().unwrap());
        let ops: Vec<_> = program.nodes().iter().map(|n| n.op.name()).collect();
        assert_eq!(ops, ["input", "linear", "linear", "glu", "linear"]);
        assert!(matches!(&program.nodes()[4].op, Op::Linear(l) if l.residual));
        assert_eq!(program.weights().len(), 3);
        assert_eq!(program, optimize(&program), "optimize is idempotent");
    }

    #[test]
    fn a_value_read_twice_is_not_fused_away() {
        let mut b = Builder::new(Stage::Text);
        let x = b.input_f32("x", [Sym::Tokens.into(), 8.into()]);
        let w = b.weight("w", [8, 8], Role::FfnUp);
        let h = b.linear(x, w, None).unwrap();
        let a = b.activation(h, Activation::Relu).unwrap();
        b.output("tap", h);
        b.output("y", a);
        let program = optimize(&b.finish().unwrap());
        assert!(program.nodes().iter().any(|n| matches!(n.op, Op::Activation(_))));
    }
}
