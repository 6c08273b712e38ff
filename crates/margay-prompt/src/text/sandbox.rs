//! Runs a Jinja template from a model file without letting it run away.
//!
//! The engine counts steps ("fuel") but not what a step costs: `{% set x = x ~ x %}` forty times over is a terabyte.
//! So every operation that can make something bigger is replaced by one that pays from a budget of bytes first:
//! operators in the compiled instructions, filters and methods by name, output by the formatter. Nested values and
//! recursion are bounded by the steps and by a stack that is large enough for them.

use minijinja::machinery::{CodeGenerator, Instruction, Instructions, eval, make_string_output, parse};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value;
use minijinja::{AutoEscape, Error, ErrorKind};

use super::TemplateError;
use super::builtins::{BUDGET_BYTES, Stopped, environment};

/// Steps a rendering may take: the longest published templates take a few hundred per message.
const FUEL: u64 = 50_000;
/// More steps per message beyond the first.
const FUEL_PER_MESSAGE: u64 = 1_000;
/// Stack of the rendering thread: nested values are dropped and written recursively.
const STACK_BYTES: usize = 32 << 20;

/// Checks that a template can be compiled.
pub(super) fn check(source: &str) -> Result<(), TemplateError> {
    with_stack(|| compile(source).map(|_| ()))
}

/// Renders a template with these variables.
pub(super) fn render(
    source: &str,
    variables: &serde_json::Value,
    messages: usize,
) -> Result<String, TemplateError> {
    let fuel = FUEL + FUEL_PER_MESSAGE * messages as u64;
    with_stack(|| {
        let (code, blocks) = compile(source)?;
        let environment = environment(fuel);
        let root = to_value(variables);
        let mut text = String::new();
        let result =
            eval(&environment, &code, root, &blocks, &mut make_string_output(&mut text), AutoEscape::None)
                .map(|_| ());
        result.map(|()| text).map_err(|e| translate(&e, fuel))
    })
}

fn to_value(json: &serde_json::Value) -> Value {
    match json {
        serde_json::Value::Null => Value::from(()),
        serde_json::Value::Bool(yes) => Value::from(*yes),
        serde_json::Value::Number(n) => {
            n.as_i64().map_or_else(|| Value::from(n.as_f64().unwrap_or(f64::NAN)), Value::from)
        }
        serde_json::Value::String(text) => Value::from(text.as_str()),
        serde_json::Value::Array(items) => Value::from(items.iter().map(to_value).collect::<Vec<_>>()),
        serde_json::Value::Object(map) => {
            Value::from_pairs(map.iter().map(|(k, v)| (k.as_str(), to_value(v))))
        }
    }
}

/// Runs in a thread with a stack for deep values; a panic there is an error here.
fn with_stack<T: Send>(work: impl FnOnce() -> Result<T, TemplateError> + Send) -> Result<T, TemplateError> {
    let failed = |detail: &str| TemplateError::Render { detail: detail.to_owned() };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("chat-template".to_owned()).stack_size(STACK_BYTES);
        match thread.spawn_scoped(scope, work) {
            Ok(thread) => thread.join().unwrap_or_else(|_| Err(failed("the template engine panicked"))),
            Err(_) => Err(failed("no thread could be started")),
        }
    })
}

type Compiled<'s> = (Instructions<'s>, std::collections::BTreeMap<&'s str, Instructions<'s>>);

fn compile(source: &str) -> Result<Compiled<'_>, TemplateError> {
    let syntax = |e: Error| TemplateError::Syntax { detail: e.to_string() };
    // As transformers sets up Jinja for chat templates.
    let config = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(syntax)?;
    let tree = parse(source, "chat template", config).map_err(syntax)?;
    let mut generator = CodeGenerator::new("chat template", source);
    generator.compile_stmt(&tree);
    let (code, blocks) = generator.finish();
    let blocks = blocks.iter().map(|(name, code)| (*name, bounded(code, source))).collect();
    Ok((bounded(&code, source), blocks))
}

/// Replaces the instructions that build something by filters that pay for it: they take the same values from the stack
/// and leave one. Literal text becomes a constant that is emitted, so that the formatter counts it, and what is stored
/// in a namespace is a copy, so that no value can hold itself.
fn bounded<'s>(code: &Instructions<'s>, source: &'s str) -> Instructions<'s> {
    let apply = |name, arguments| Instruction::ApplyFilter(name, Some(arguments), !0); // !0: not cached
    let count = |n: usize| u16::try_from(n).ok().filter(|n| *n > 0);
    let mut steps: Vec<Vec<Instruction<'s>>> = Vec::new();
    while let Some(instruction) = code.get(steps.len() as u32) {
        let kept = || vec![instruction.clone()];
        steps.push(match instruction {
            Instruction::Add => vec![apply("margay-add", 2)],
            Instruction::Mul => vec![apply("margay-mul", 2)],
            Instruction::Rem => vec![apply("margay-rem", 2)],
            Instruction::StringConcat => vec![apply("margay-concat", 2)],
            Instruction::BuildList(Some(n)) => count(*n).map_or_else(kept, |n| vec![apply("margay-list", n)]),
            Instruction::BuildTuple(Some(n)) => {
                count(*n).map_or_else(kept, |n| vec![apply("margay-tuple", n)])
            }
            Instruction::BuildMap(n) => count(*n * 2).map_or_else(kept, |n| vec![apply("margay-map", n)]),
            Instruction::EmitRaw(raw) => vec![Instruction::LoadConst(Value::from(*raw)), Instruction::Emit],
            Instruction::SetAttr(_) => {
                vec![Instruction::Swap, apply("margay-copy", 1), Instruction::Swap, instruction.clone()]
            }
            _ => kept(),
        });
    }
    // Where each instruction went; a jump may also lead behind the last one.
    let mut moved = vec![0u32];
    for step in &steps {
        moved.push(moved[moved.len() - 1] + step.len() as u32);
    }
    let target = |at: &mut u32| *at = moved.get(*at as usize).copied().unwrap_or(*at);
    let mut out = Instructions::new(code.name(), source);
    for (at, step) in (0u32..).zip(steps) {
        let line = code.get_line(at).and_then(|line| u16::try_from(line).ok()).unwrap_or_default();
        for mut instruction in step {
            match &mut instruction {
                Instruction::Iterate(at)
                | Instruction::Jump(at)
                | Instruction::JumpIfFalse(at)
                | Instruction::JumpIfFalseOrPop(at)
                | Instruction::JumpIfTrueOrPop(at)
                | Instruction::BuildMacro(_, at, _) => target(at),
                _ => {}
            }
            out.add_with_line(instruction, line);
        }
    }
    out
}

fn translate(error: &Error, fuel: u64) -> TemplateError {
    if error.kind() == ErrorKind::OutOfFuel {
        return TemplateError::TooSlow { fuel };
    }
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(inner) = source {
        match inner.downcast_ref::<Stopped>() {
            Some(Stopped::Refused(message)) => return TemplateError::Refused { message: message.clone() },
            Some(Stopped::OverBudget) => return TemplateError::OutputTooLong { limit: BUDGET_BYTES },
            None => {}
        }
        if inner.downcast_ref::<Error>().is_some_and(|e| e.kind() == ErrorKind::OutOfFuel) {
            return TemplateError::TooSlow { fuel };
        }
        source = inner.source();
    }
    let line = error.line().map(|line| format!(" (line {line})")).unwrap_or_default();
    TemplateError::Render { detail: format!("{error}{line}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    /// Every case here ends within 20 ms on an idle machine; a busy one gets room.
    const PATIENCE: Duration = Duration::from_secs(2);

    fn run(source: &str) -> Result<String, TemplateError> {
        let start = Instant::now();
        let result = render(source, &serde_json::json!({"messages": ["a", "b"], "s": "x"}), 2);
        assert!(start.elapsed() < PATIENCE, "{source} took {:?}", start.elapsed());
        result
    }

    #[test]
    fn endless_loops_are_stopped() {
        let nested =
            "{% for a in range(9999) %}{% for b in range(9999) %}{% set x = 1 %}{% endfor %}{% endfor %}";
        assert!(matches!(run(nested), Err(TemplateError::TooSlow { .. })), "{:?}", run(nested));
    }

    #[test]
    fn strings_cannot_grow_without_paying() {
        let grow = |step: &str| {
            format!(
                "{{% set ns = namespace(x='aaaa', l=[1]) %}}{{% for i in range(60) %}}{step}{{% endfor %}}{{{{ ns.x|length }}}}"
            )
        };
        for step in [
            "{% set ns.x = ns.x ~ ns.x %}",
            "{% set ns.x = ns.x + ns.x %}",
            "{% set ns.x = ns.x * 2 %}",
            "{% set ns.x = 2 * ns.x %}",
            "{% set ns.x = ns.x|replace('a', ns.x) %}",
            "{% set ns.x = ns.x.replace('a', ns.x) %}",
            "{% set ns.x = [ns.x, ns.x]|join %}",
            "{% set ns.x = ns.x.join([ns.x, ns.x, ns.x]) %}",
            "{% set ns.x = (ns.x ~ '\"\\\\')|tojson %}",
            "{% set x %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = x %}",
            "{% macro m() %}{{ ns.x }}{{ ns.x }}{% endmacro %}{% set ns.x = m() %}",
            "{% set ns.x = ('\\n' ~ ns.x)|indent(1000) %}{% set ns.x = ns.x ~ ns.x %}",
            "{% set ns.l = ns.l + ns.l %}",
            "{% set ns.l = [ns.l, ns.l] %}",
            "{% set ns.l = (ns.l, ns.l) %}",
            "{% set ns.l = {'a': ns.l, 'b': ns.l} %}",
        ] {
            let result = run(&grow(step));
            assert!(matches!(result, Err(TemplateError::OutputTooLong { .. })), "{step}: {result:?}");
        }
    }

    #[test]
    fn huge_output_and_huge_ranges_are_stopped() {
        for source in [
            "{{ 'a' * 1000000000 }}",
            "{% for i in range(1000000000) %}{% endfor %}",
            "{% for i in range(9000) %}{{ 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa' * 20 }}{% endfor %}",
        ] {
            assert!(matches!(run(source), Err(TemplateError::OutputTooLong { .. })), "{source}");
        }
        let formatted = run("{{ '%1000000000s'|format(1) }}");
        assert!(matches!(formatted, Err(TemplateError::Render { .. })), "{formatted:?}");
        assert!(matches!(run("{{ '%1000000000s' % 1 }}"), Err(TemplateError::Render { .. })));
        assert!(matches!(run("{{ '{:1000000000}'.format(1) }}"), Err(TemplateError::Render { .. })));
    }

    #[test]
    fn deep_recursion_and_deep_values_are_errors_and_not_crashes() {
        assert!(run("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}").is_err());
        let deep =
            "{% set ns = namespace(x=1) %}{% for i in range(9000) %}{% set ns.x = [ns.x] %}{% endfor %}ok";
        assert!(matches!(run(deep), Err(TemplateError::OutputTooLong { .. })), "{:?}", run(deep));
        assert!(run(&"(".repeat(2_000)).is_ok()); // text, not code
        assert!(matches!(
            run(&format!("{{{{ {} }}}}", "(".repeat(20_000))),
            Err(TemplateError::Syntax { .. })
        ));
    }

    #[test]
    fn values_that_hold_themselves_are_errors_and_not_crashes() {
        for step in [
            "{{ ns }}",
            "{{ ns|tojson }}",
            "{{ ns|string|length }}",
            "{{ 'a' ~ ns }}",
            "{{ [ns]|join }}",
            "{{ [ns, 1] }}",
            "{{ ns|upper }}",
            "{{ ns == other }}",
            "{{ ns in [other] }}",
            "{{ [ns, other]|sort }}",
            "{{ [ns, other]|unique|list|length }}",
            "{{ [ns, other]|max }}",
            "{{ {ns: 1}|length }}",
            "{{ ns|items|list|length }}",
            "{{ ns|dictsort|length }}",
        ] {
            let source = format!(
                "{{% set ns = namespace(a=1) %}}{{% set other = namespace(a=1) %}}{{% set ns.a = ns %}}{{% set other.a = other %}}{step}"
            );
            let _ = run(&source);
        }
    }

    #[test]
    fn templates_cannot_reach_other_files() {
        assert!(run("{% include '/etc/passwd' %}").is_err());
        assert!(run("{% import 'x' as y %}").is_err());
        assert!(run("{% extends 'x' %}").is_err());
    }

    #[test]
    fn words_of_python_come_out_as_python_writes_them() {
        assert_eq!(run("{{ none }} {{ true }} {{ 'x' ~ none ~ 1 }}").unwrap(), "None True xNone1");
        assert_eq!(
            run("{{ {'b': [1, 'é'], 'a': none}|tojson }}").unwrap(),
            "{\"b\": [1, \"é\"], \"a\": null}"
        );
        assert_eq!(run("{{ '<>&'|tojson }}").unwrap(), "\"<>&\"");
        assert_eq!(
            run("{{ [1] + [2] }} {{ 1 + 2.5 }} {{ 7 % 4 }} {{ -1 % 4 }} {{ 2 * 3 }}").unwrap(),
            "[1, 2] 3.5 3 3 6"
        );
        assert_eq!(run("{{ 'a-b'.split('-')[1].upper() }}{{ ' x '.strip() }}").unwrap(), "Bx");
        assert_eq!(run("{%- for i in range(1, 7, 2) %}{{ i }}{% endfor %}").unwrap(), "135");
        assert_eq!(run("a\n  {% if true %}\nb\n{% endif %}\nc\n").unwrap(), "a\nb\nc");
    }

    #[test]
    fn a_template_that_refuses_is_quoted() {
        let refused = run("{{ raise_exception('roles must alternate') }}").unwrap_err();
        assert_eq!(refused, TemplateError::Refused { message: "roles must alternate".to_owned() });
    }
}
