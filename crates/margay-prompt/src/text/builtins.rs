//! What a chat template may call, each paying for what it builds from a budget of bytes.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::template::{CLOSE, OPEN};
use minijinja::value::{Kwargs, Rest, Tuple, Value, ValueKind, ValueOrKwargs, from_args};
use minijinja::{Environment, Error, ErrorKind, State, filters};
use serde::Serialize;

/// Longest single string a template may build, in bytes: each later step may have to read it.
const MAX_STRING_BYTES: usize = 128 << 10;
/// Longest list a template may build.
const MAX_LIST: usize = 10_000;
/// Nesting of macro calls and loops.
const RECURSION_LIMIT: usize = 64;
/// Bytes a rendering may build, output and intermediate strings together. User text is not among them.
pub(super) const BUDGET_BYTES: usize = 4 << 20;

/// Why a template was stopped, inside the engine's error.
#[derive(Debug)]
pub(super) enum Stopped {
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
pub(super) fn environment(fuel: u64) -> Environment<'static> {
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
    env.add_function("token", |id: u32| format!("{OPEN}#{id}{CLOSE}"));
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
        ValueKind::Seq if has_map(&value)? => {
            value.try_iter()?.map(copy).collect::<Result<Vec<Value>, Error>>().map(Value::from)
        }
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
