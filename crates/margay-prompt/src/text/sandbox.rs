//! Runs a Jinja template from a model file without letting it run away.
//!
//! The engine counts steps ("fuel") but not what a step costs: `{% set x = x ~ x %}` forty times over is a terabyte.
//! So every operation that can make something bigger is replaced by one that pays from a budget of bytes first:
//! operators in the compiled instructions, filters and methods by name, output by the formatter. Nested values and
//! recursion are bounded by the steps and by a stack that is large enough for them.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use minijinja::machinery::{CodeGenerator, Instruction, Instructions, eval, make_string_output, parse};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, Tuple, Value, ValueKind, ValueOrKwargs, from_args};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, filters};
use serde::Serialize;

use super::TemplateError;

/// Steps a rendering may take: the longest published templates take a few hundred per message.
const FUEL: u64 = 50_000;
/// More steps per message beyond the first.
const FUEL_PER_MESSAGE: u64 = 1_000;
/// Bytes a rendering may build, output and intermediate strings together. User text is not among them.
const BUDGET_BYTES: usize = 4 << 20;
/// Longest single string a template may build, in bytes: each later step may have to read it.
const MAX_STRING_BYTES: usize = 128 << 10;
/// Longest list a template may build.
const MAX_LIST: usize = 10_000;
/// Nesting of macro calls and loops.
const RECURSION_LIMIT: usize = 64;
/// Stack of the rendering thread: values nested as deep as the fuel allows are dropped recursively.
const STACK_BYTES: usize = 256 << 20;

/// Why a template was stopped, inside the engine's error.
#[derive(Debug)]
enum Stopped {
    Refused(String),
    OverBudget,
}

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(message) => write!(f, "refused: {message}"),
            Self::OverBudget => write!(f, "more than the budget of bytes or list items"),
        }
    }
}

impl std::error::Error for Stopped {}

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
            Instruction::BuildTuple(Some(n)) => count(*n).map_or_else(kept, |n| vec![apply("margay-tuple", n)]),
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

/// The bytes that are left to build.
#[derive(Clone)]
struct Budget(Arc<AtomicUsize>);

impl Budget {
    fn pay(&self, bytes: usize) -> Result<(), Error> {
        let paid = self.0.try_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes));
        if bytes > MAX_STRING_BYTES || paid.is_err() { Err(over_budget()) } else { Ok(()) }
    }

    fn list(&self, items: usize) -> Result<(), Error> {
        if items > MAX_LIST { Err(over_budget()) } else { self.pay(items) }
    }
}

fn over_budget() -> Error {
    Error::new(ErrorKind::InvalidOperation, "the template builds too much").with_source(Stopped::OverBudget)
}

fn invalid(detail: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, detail)
}

/// The engine with the names a chat template may use.
fn environment(fuel: u64) -> Environment<'static> {
    let budget = Budget(Arc::new(AtomicUsize::new(BUDGET_BYTES)));
    let mut env = Environment::new();
    env.set_fuel(Some(fuel));
    env.set_recursion_limit(RECURSION_LIMIT);
    for name in ["escape", "e", "format", "urlencode", "pprint", "sum", "batch", "slice", "zip", "chain"] {
        env.remove_filter(name);
    }
    env.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(invalid("raise_exception was called").with_source(Stopped::Refused(message)))
    });
    let b = budget.clone();
    env.set_formatter(move |out, _, value| {
        let text = display(value)?;
        b.pay(text.len())?;
        out.write_str(&text).map_err(Error::from)
    });

    env.remove_global("debug");

    let b = budget.clone();
    env.add_filter("margay-list", move |items: Rest<Value>| {
        pay_for_values(&b, &items)?;
        Ok::<_, Error>(Value::from(items.0))
    });
    let b = budget.clone();
    env.add_filter("margay-tuple", move |items: Rest<Value>| {
        pay_for_values(&b, &items)?;
        Ok::<_, Error>(Value::from(Tuple::from(items.0)))
    });
    let b = budget.clone();
    env.add_filter("margay-map", move |items: Rest<Value>| {
        pay_for_values(&b, &items)?;
        let pairs = items.0.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone()));
        Ok::<_, Error>(Value::from_pairs(pairs))
    });
    let b = budget.clone();
    env.add_filter("margay-copy", move |value: Value| {
        pay_for_values(&b, std::slice::from_ref(&value))?;
        copy(value)
    });
    let b = budget.clone();
    env.add_function("namespace", move |values: Option<ValueOrKwargs>| {
        let values = values.map(ValueOrKwargs::into_value).unwrap_or_else(|| Value::from_pairs([("", 0); 0]));
        pay_for_values(&b, std::slice::from_ref(&values))?;
        let (values,) = from_args(&[values])?;
        minijinja::functions::namespace(Some(values))
    });
    let b = budget.clone();
    env.add_function("dict", move |value: Option<Value>, more: Kwargs| {
        pay_for_values(&b, &[value.clone().unwrap_or_default(), more.clone().into()])?;
        minijinja::functions::dict(value, more)
    });
    let b = budget.clone();
    env.add_filter("string", move |value: &Value| {
        let text = display(value)?;
        b.pay(text.len())?;
        Ok::<_, Error>(text)
    });
    let b = budget.clone();
    env.add_filter("margay-concat", move |left: &Value, right: &Value| concat(&b, left, right));
    let b = budget.clone();
    env.add_filter("margay-add", move |left: &Value, right: &Value| add(&b, left, right));
    let b = budget.clone();
    env.add_filter("margay-mul", move |left: &Value, right: &Value| multiply(&b, left, right));
    env.add_filter("margay-rem", |left: &Value, right: &Value| remainder(left, right));
    let b = budget.clone();
    env.add_filter("replace", move |text: &Value, from: &Value, to: &Value| {
        replace(&b, &display(text)?, &display(from)?, &display(to)?)
    });
    let b = budget.clone();
    env.add_filter("join", move |list: &Value, glue: Option<String>| {
        join(&b, list, &glue.unwrap_or_default())
    });
    let b = budget.clone();
    env.add_filter("indent", move |text: String, width: Option<usize>, kwargs: Kwargs| {
        let width = kwargs.get::<Option<usize>>("width")?.or(width).unwrap_or(4).min(MAX_STRING_BYTES);
        b.pay(text.len().saturating_add((text.lines().count() + 1).saturating_mul(width)))?;
        let first = kwargs.get::<Option<bool>>("first")?;
        let blank = kwargs.get::<Option<bool>>("blank")?;
        kwargs.assert_all_used()?;
        Ok::<_, Error>(indent(&text, width, first.unwrap_or(false), blank.unwrap_or(false)))
    });
    let b = budget.clone();
    env.add_filter("tojson", move |value: &Value, indent: Option<usize>, kwargs: Kwargs| {
        let indent = kwargs.get::<Option<usize>>("indent")?.or(indent);
        let _ = kwargs.get::<Option<bool>>("ensure_ascii")?;
        kwargs.assert_all_used()?;
        to_json(&b, value, indent)
    });
    let b = budget.clone();
    env.add_filter("list", move |state: &State, value: Value| {
        b.list(value.len().unwrap_or(0))?;
        filters::list(state, value)
    });
    let b = budget.clone();
    env.add_function("range", move |low: i64, high: Option<i64>, step: Option<i64>| {
        range(&b, low, high, step)
    });
    let b = budget;
    env.set_unknown_method_callback(move |state, value, method, args| match (value.kind(), method) {
        (ValueKind::String, "replace") => {
            let (from, to): (String, String) = from_args(args)?;
            replace(&b, &display(value)?, &from, &to)
        }
        (ValueKind::String, "join") => {
            let (list,): (Value,) = from_args(args)?;
            join(&b, &list, &display(value)?)
        }
        (ValueKind::String, "format") => Err(invalid("str.format is not available to chat templates")),
        _ => minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args),
    });
    env
}

/// A value as Python's `str` would write it, where the engine's own words differ.
fn display(value: &Value) -> Result<String, Error> {
    /// Stops a value that holds itself, or the same thing many times over.
    struct Limited(String);
    impl fmt::Write for Limited {
        fn write_str(&mut self, part: &str) -> fmt::Result {
            if self.0.len() + part.len() > MAX_STRING_BYTES {
                return Err(fmt::Error);
            }
            self.0.push_str(part);
            Ok(())
        }
    }
    match value.kind() {
        ValueKind::None => Ok("None".to_owned()),
        ValueKind::Bool => Ok(if value.is_true() { "True" } else { "False" }.to_owned()),
        _ => {
            let mut text = Limited(String::new());
            fmt::write(&mut text, format_args!("{value}")).map_err(|_| over_budget())?;
            Ok(text.0)
        }
    }
}

/// Pays for a list or map by the number of values in it, those within values counted too.
fn pay_for_values(budget: &Budget, values: &[Value]) -> Result<(), Error> {
    /// What a value costs: about the bytes of one with its place in a list.
    const VALUE_BYTES: usize = 64;
    let mut open: Vec<Value> = values.to_vec();
    while let Some(value) = open.pop() {
        budget.pay(VALUE_BYTES)?;
        match value.kind() {
            ValueKind::Seq | ValueKind::Iterable => open.extend(value.try_iter()?),
            ValueKind::Map => {
                for key in value.try_iter()? {
                    open.push(value.get_item(&key)?);
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// A value whose maps (namespaces among them) are copies.
fn copy(value: Value) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::Map => {
            let pair = |key: Value| Ok((key.clone(), copy(value.get_item(&key)?)?));
            let pairs: Result<Vec<(Value, Value)>, Error> = value.try_iter()?.map(pair).collect();
            pairs.map(Value::from_pairs)
        }
        ValueKind::Seq if has_map(&value)? => value.try_iter()?.map(copy).collect::<Result<Vec<Value>, Error>>().map(Value::from),
        _ => Ok(value),
    }
}

fn has_map(value: &Value) -> Result<bool, Error> {
    match value.kind() {
        ValueKind::Map => Ok(true),
        ValueKind::Seq => value.try_iter()?.try_fold(false, |found, item| Ok(found || has_map(&item)?)),
        _ => Ok(false),
    }
}

fn concat(budget: &Budget, left: &Value, right: &Value) -> Result<Value, Error> {
    let (left, right) = (display(left)?, display(right)?);
    budget.pay(left.len() + right.len())?;
    Ok(Value::from(format!("{left}{right}")))
}

fn add(budget: &Budget, left: &Value, right: &Value) -> Result<Value, Error> {
    if let (Some(left), Some(right)) = (left.as_str(), right.as_str()) {
        budget.pay(left.len() + right.len())?;
        return Ok(Value::from(format!("{left}{right}")));
    }
    if let (Some(left), Some(right)) = (left.as_i64(), right.as_i64()) {
        return left.checked_add(right).map(Value::from).ok_or_else(|| invalid("+ overflows"));
    }
    if left.kind() == ValueKind::Seq && right.kind() == ValueKind::Seq {
        budget.list(left.len().unwrap_or(0).saturating_add(right.len().unwrap_or(0)))?;
        let items = left.try_iter()?.chain(right.try_iter()?);
        return Ok(Value::from(items.collect::<Vec<_>>()));
    }
    match (f64::try_from(left.clone()), f64::try_from(right.clone())) {
        (Ok(left), Ok(right)) => Ok(Value::from(left + right)),
        _ => Err(Error::new(
            ErrorKind::InvalidOperation,
            format!("cannot add {} and {}", left.kind(), right.kind()),
        )),
    }
}

fn multiply(budget: &Budget, left: &Value, right: &Value) -> Result<Value, Error> {
    if let (Some(left), Some(right)) = (left.as_i64(), right.as_i64()) {
        return left.checked_mul(right).map(Value::from).ok_or_else(|| invalid("* overflows"));
    }
    let text = left.as_str().zip(right.as_i64()).or_else(|| right.as_str().zip(left.as_i64()));
    if let Some((text, times)) = text {
        let times = usize::try_from(times).unwrap_or(0);
        budget.pay(text.len().saturating_mul(times))?;
        return Ok(Value::from(text.repeat(times)));
    }
    match (f64::try_from(left.clone()), f64::try_from(right.clone())) {
        (Ok(left), Ok(right)) => Ok(Value::from(left * right)),
        _ => Err(invalid("* works on numbers, and on a string and a number")),
    }
}

fn remainder(left: &Value, right: &Value) -> Result<Value, Error> {
    match (left.as_i64(), right.as_i64()) {
        // Python's %: the sign of the divisor.
        (Some(left), Some(right)) if right != 0 => Ok(Value::from(
            left.checked_rem(right)
                .map_or(0, |r| if r != 0 && (r < 0) != (right < 0) { r + right } else { r }),
        )),
        _ => Err(invalid("% works on whole numbers and not by 0")),
    }
}

fn replace(budget: &Budget, text: &str, from: &str, to: &str) -> Result<Value, Error> {
    let count = text.matches(from).count();
    budget.pay(text.len().saturating_add(count.saturating_mul(to.len())))?;
    Ok(Value::from(text.replace(from, to)))
}

fn join(budget: &Budget, list: &Value, glue: &str) -> Result<Value, Error> {
    let mut joined = String::new();
    for (i, item) in list.try_iter()?.enumerate() {
        let item = display(&item)?;
        budget.pay(item.len() + glue.len())?;
        if i > 0 {
            joined.push_str(glue);
        }
        joined.push_str(&item);
        if joined.len() > MAX_STRING_BYTES {
            return Err(over_budget());
        }
    }
    Ok(Value::from(joined))
}

fn indent(text: &str, width: usize, first: bool, blank: bool) -> String {
    let pad = " ".repeat(width);
    let mut out = String::new();
    for (i, line) in text.split('\n').enumerate() {
        if i > 0 {
            out.push('\n');
        }
        if (i > 0 || first) && (blank || !line.is_empty()) {
            out.push_str(&pad);
        }
        out.push_str(line);
    }
    out
}

fn range(budget: &Budget, low: i64, high: Option<i64>, step: Option<i64>) -> Result<Value, Error> {
    let (low, high) = high.map_or((0, low), |high| (low, high));
    let step = step.unwrap_or(1);
    if step == 0 {
        return Err(invalid("range steps by 0"));
    }
    let span = i128::from(high) - i128::from(low);
    let step = i128::from(step);
    let count = if (span > 0) == (step > 0) { (span.abs() + step.abs() - 1) / step.abs() } else { 0 };
    budget.list(usize::try_from(count).unwrap_or(usize::MAX))?;
    Ok(Value::from((0..count).map(|i| (i128::from(low) + i * step) as i64).collect::<Vec<_>>()))
}

/// `json.dumps(value, ensure_ascii=False, indent=indent)`.
fn to_json(budget: &Budget, value: &Value, indent: Option<usize>) -> Result<Value, Error> {
    /// Python's separators: `", "` and `": "`.
    struct Python;
    impl serde_json::ser::Formatter for Python {
        fn begin_array_value<W: ?Sized + io::Write>(
            &mut self,
            writer: &mut W,
            first: bool,
        ) -> io::Result<()> {
            if first { Ok(()) } else { writer.write_all(b", ") }
        }
        fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
            if first { Ok(()) } else { writer.write_all(b", ") }
        }
        fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
            writer.write_all(b": ")
        }
    }
    let mut out = Paying { budget, bytes: Vec::new() };
    let result = match indent {
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, Python)),
        Some(width) => {
            let pad = " ".repeat(width.min(16));
            let pretty = serde_json::ser::PrettyFormatter::with_indent(pad.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, pretty))
        }
    };
    match result {
        Ok(()) => Ok(Value::from(String::from_utf8_lossy(&out.bytes).into_owned())),
        Err(e) if e.is_io() => Err(over_budget()),
        Err(_) => Err(invalid("this value cannot be written as JSON")),
    }
}

/// A writer that stops at the budget.
struct Paying<'b> {
    budget: &'b Budget,
    bytes: Vec<u8>,
}

impl io::Write for Paying<'_> {
    fn write(&mut self, part: &[u8]) -> io::Result<usize> {
        let fits = self.bytes.len() + part.len() <= MAX_STRING_BYTES;
        if !fits || self.budget.pay(part.len()).is_err() {
            return Err(io::Error::other("over budget"));
        }
        self.bytes.extend_from_slice(part);
        Ok(part.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    /// What a hostile template may cost, with room for a slow test machine in an unoptimised build.
    const PATIENCE: Duration = Duration::from_millis(100);

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
        assert!(run(deep).is_ok() || matches!(run(deep), Err(TemplateError::TooSlow { .. })));
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
