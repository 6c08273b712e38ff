//! Places every value of a program in one arena, so that running it allocates nothing.

use crate::{Bindings, GraphError, Op, Program, ValueId};

/// Alignment of every value in the arena, bytes: one cache line, one AVX-512 register.
pub const ALIGN_BYTES: usize = 64;

/// Where the values of a program lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// For each value its offset in bytes, a multiple of [`ALIGN_BYTES`]; `None` for inputs, which the caller owns.
    pub offsets: Vec<Option<usize>>,
    /// For each value its size in bytes under the limits (0 for inputs).
    pub sizes: Vec<usize>,
    /// Size of the arena.
    pub arena_bytes: usize,
}

/// Places each value of `program` under `limits`, the greatest size of each symbol. Values that are never alive at
/// the same time share memory; an op that works element by element or row by row writes over its first input where
/// nobody reads that input afterwards.
///
/// # Errors
/// [`GraphError`] where a symbol is unbound or a size overflows.
pub fn plan(program: &Program, limits: &Bindings) -> Result<MemoryPlan, GraphError> {
    plan_without(program, limits, &[])
}

/// As [`plan`], where a backend never writes the values `absent`: they have size 0.
///
/// # Errors
/// As [`plan`].
pub fn plan_without(
    program: &Program,
    limits: &Bindings,
    absent: &[ValueId],
) -> Result<MemoryPlan, GraphError> {
    let mut sizes = sizes(program, limits)?;
    absent.iter().for_each(|value| sizes[value.index()] = 0);
    let last = program.last_uses();
    // A slot is a chain of values that write over one another.
    let mut slot_of: Vec<Option<usize>> = vec![None; sizes.len()];
    let mut slots: Vec<Slot> = vec![];
    for (at, node) in program.nodes().iter().enumerate() {
        let out = node.output.index();
        if matches!(node.op, Op::Input) {
            continue;
        }
        let over = overwritable(&node.op)
            .and_then(|i| node.inputs.get(i))
            .map(|v| v.index())
            .filter(|&v| last[v] == at && sizes[v] == sizes[out])
            .filter(|&v| node.inputs.iter().filter(|i| i.index() == v).count() == 1)
            .and_then(|v| slot_of[v]);
        let slot = over.unwrap_or_else(|| {
            slots.push(Slot { bytes: sizes[out], from: at, to: at, offset: 0 });
            slots.len() - 1
        });
        slots[slot].to = slots[slot].to.max(last[out]);
        slot_of[out] = Some(slot);
    }
    let arena_bytes = place(&mut slots)?;
    let offsets = slot_of.iter().map(|s| s.map(|s| slots[s].offset)).collect();
    Ok(MemoryPlan { offsets, sizes, arena_bytes })
}

struct Slot {
    bytes: usize,
    from: usize,
    to: usize,
    offset: usize,
}

/// Index of the input that the op may write its result over. True of ops whose kernels read an element (or, for
/// norms, a whole row) before they write it.
fn overwritable(op: &Op) -> Option<usize> {
    match op {
        Op::Add | Op::Mul | Op::Scale(_) | Op::Glu(_) | Op::Activation(_) | Op::Norm(_) | Op::Rope(_) => {
            Some(0)
        }
        Op::Linear(l) if l.residual => Some(1),
        _ => None,
    }
}

fn sizes(program: &Program, limits: &Bindings) -> Result<Vec<usize>, GraphError> {
    let mut sizes = vec![0; program.values().len()];
    for node in program.nodes().iter().filter(|n| !matches!(n.op, Op::Input)) {
        let value = program.value(node.output);
        let mut bytes = 4usize;
        for dim in &value.dims {
            let size = dim.eval(limits)?;
            bytes = bytes
                .checked_mul(size)
                .ok_or_else(|| GraphError::shape(format!("{dim} overflows the arena")))?;
        }
        sizes[node.output.index()] = bytes;
    }
    Ok(sizes)
}

/// Greedy by size: the largest slots first, each at the lowest gap among those alive with it. Within a few percent of
/// optimal on inference graphs. Source: Pisarchyk and Lee, "Efficient Memory Management for Deep Neural Net
/// Inference", arXiv 2001.03288, section 4.
fn place(slots: &mut [Slot]) -> Result<usize, GraphError> {
    let mut order: Vec<usize> = (0..slots.len()).collect();
    order.sort_by_key(|&s| (std::cmp::Reverse(slots[s].bytes), s));
    let mut placed: Vec<usize> = vec![];
    let mut total = 0;
    for s in order {
        let mut alive: Vec<(usize, usize)> = placed
            .iter()
            .map(|&p| &slots[p])
            .filter(|p| p.from <= slots[s].to && slots[s].from <= p.to)
            .map(|p| (p.offset, p.offset + p.bytes))
            .collect();
        alive.sort_unstable();
        let mut at = 0;
        for (from, to) in alive {
            if at + slots[s].bytes <= from {
                break;
            }
            at = at.max(to.next_multiple_of(ALIGN_BYTES));
        }
        let end =
            at.checked_add(slots[s].bytes).ok_or_else(|| GraphError::shape("the arena's size overflows"))?;
        slots[s].offset = at;
        total = total.max(end);
        placed.push(s);
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Activation, Builder, Dim, Role, Stage, Sym};

    fn chain(layers: usize) -> Program {
        let mut b = Builder::new(Stage::Text);
        let mut x = b.input_f32("x", [Sym::Tokens.into(), Dim::from(16)]);
        for i in 0..layers {
            let up = b.weight(&format!("up{i}"), [64, 16], Role::FfnUp);
            let down = b.weight(&format!("down{i}"), [16, 64], Role::FfnDown);
            let h = b.linear(x, up, None).unwrap();
            let h = b.activation(h, Activation::Silu).unwrap();
            let h = b.linear(h, down, None).unwrap();
            x = b.add(x, h).unwrap();
        }
        b.output("y", x);
        b.finish().unwrap()
    }

    #[test]
    fn depth_costs_no_memory() {
        let limits = Bindings::new().with(Sym::Tokens, 10);
        let two = plan(&chain(2), &limits).unwrap().arena_bytes;
        let twenty = plan(&chain(20), &limits).unwrap().arena_bytes;
        assert_eq!(two, twenty);
        assert_eq!(two, 10 * (64 + 16 + 16) * 4);
    }

    #[test]
    fn values_that_are_never_written_take_no_memory() {
        let program = chain(2);
        let limits = Bindings::new().with(Sym::Tokens, 10);
        let wide = program.nodes().iter().filter(|n| program.value(n.output).columns() == 64);
        let wide: Vec<_> = wide.map(|n| n.output).collect();
        let plan = plan_without(&program, &limits, &wide).unwrap();
        assert_eq!(plan.arena_bytes, 10 * (16 + 16) * 4);
        assert!(wide.iter().all(|v| plan.sizes[v.index()] == 0));
    }

    #[test]
    fn values_alive_together_never_overlap() {
        let program = chain(5);
        let plan = plan(&program, &Bindings::new().with(Sym::Tokens, 7)).unwrap();
        let last = program.last_uses();
        for (at, node) in program.nodes().iter().enumerate() {
            let out = node.output.index();
            let Some(offset) = plan.offsets[out] else { continue };
            for other in program.nodes()[..at].iter().map(|n| n.output.index()) {
                let Some(there) = plan.offsets[other] else { continue };
                let apart = offset + plan.sizes[out] <= there || there + plan.sizes[other] <= offset;
                let written_over = offset == there && last[other] == at;
                assert!(apart || last[other] < at || written_over, "%{out} lies on %{other}");
            }
        }
    }
}
