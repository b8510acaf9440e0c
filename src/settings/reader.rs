//! Reading values by hand, so that every fault is found in one pass.
//!
//! A [`Table`] is asked for its keys; a key gives a [`Slot`]; a slot is asked for a value of some type. `None` means
//! that a fault has been noted. What was asked for is a key that exists; when a table is dropped, the keys that
//! nobody asked for are faults.

use std::cell::RefCell;
use std::collections::BTreeSet;

use config::{Map, Value, ValueKind};

use super::effective::Leaf;
use super::fault::BUILT_IN;
use super::fault::Fault;
use super::layers::Layers;
use super::path::{Step, dotted, inline, quoted};
use super::units;

/// What reading has found so far.
#[derive(Debug)]
pub(super) struct Report<'a> {
    layers: &'a Layers,
    faults: RefCell<Vec<Fault>>,
    warnings: RefCell<Vec<String>>,
    leaves: RefCell<Vec<Leaf>>,
    known: RefCell<BTreeSet<String>>,
}

/// What reading came to.
#[derive(Debug)]
pub(super) struct Findings {
    pub(super) faults: Vec<Fault>,
    pub(super) warnings: Vec<String>,
    pub(super) leaves: Vec<Leaf>,
    /// Every key that was asked for, `*` for names and `[]` for elements.
    #[cfg_attr(not(test), expect(dead_code, reason = "held against the built-in default by a test"))]
    pub(super) known: BTreeSet<String>,
}

impl<'a> Report<'a> {
    pub(super) fn new(layers: &'a Layers, faults: Vec<Fault>) -> Self {
        Self {
            layers,
            faults: faults.into(),
            warnings: RefCell::default(),
            leaves: RefCell::default(),
            known: RefCell::default(),
        }
    }

    /// The outermost table.
    pub(super) fn root(&'a self) -> Table<'a> {
        Table {
            report: self,
            path: Vec::new(),
            pattern: String::new(),
            values: &self.layers.merged,
            asked: RefCell::default(),
            quiet: false,
        }
    }

    pub(super) fn fault(&self, path: &[Step], reason: impl Into<String>) {
        let origin = self.layers.origin(path).0.to_owned();
        self.faults.borrow_mut().push(Fault { origin, key: dotted(path), reason: reason.into() });
    }

    /// A fault of a variable that is not a key of the config.
    pub(super) fn variable_fault(&self, variable: &str, key: &str, reason: impl Into<String>) {
        self.faults.borrow_mut().push(Fault {
            origin: variable.into(),
            key: key.into(),
            reason: reason.into(),
        });
    }

    pub(super) fn warn(&self, warning: impl Into<String>) {
        self.warnings.borrow_mut().push(warning.into());
    }

    /// Notes what is no key, but tells two configs apart: a secret's value, a key file's content.
    pub(super) fn note(&self, key: String, shown: &str, raw: &[u8]) {
        self.leaves.borrow_mut().push(Leaf::aside(key, shown, raw));
    }

    pub(super) fn finish(self) -> Findings {
        Findings {
            faults: self.faults.into_inner(),
            warnings: self.warnings.into_inner(),
            leaves: self.leaves.into_inner(),
            known: self.known.into_inner(),
        }
    }
}

/// A table being read.
#[derive(Debug)]
pub(super) struct Table<'a> {
    report: &'a Report<'a>,
    path: Vec<Step>,
    pattern: String,
    values: &'a Map<String, Value>,
    asked: RefCell<BTreeSet<String>>,
    quiet: bool,
}

/// A key's place, with or without a value.
#[derive(Clone, Debug)]
pub(super) struct Slot<'a> {
    report: &'a Report<'a>,
    path: Vec<Step>,
    pattern: String,
    value: Option<&'a Value>,
    quiet: bool,
}

impl<'a> Table<'a> {
    /// A key that must be there.
    pub(super) fn key(&self, key: &str) -> Slot<'a> {
        let pattern = match self.pattern.as_str() {
            "" => key.to_owned(),
            pattern => format!("{pattern}.{key}"),
        };
        self.report.known.borrow_mut().insert(pattern.clone());
        self.slot(key, pattern)
    }

    /// A key that may be there.
    pub(super) fn optional(&self, key: &str) -> Option<Slot<'a>> {
        let slot = self.key(key);
        slot.value.is_some().then_some(slot)
    }

    /// Notes, for the effective config, what holds for a key that is not there.
    pub(super) fn assume(&self, key: &str, value: impl Into<Value>) {
        let value = value.into();
        let mut path = self.path.clone();
        path.push(Step::Key(key.to_owned()));
        self.report.leaves.borrow_mut().push(Leaf::new(path, &value, inline(&value), None));
    }

    /// What is there under names of the operator's choice, by name: all that nobody has asked for so far.
    pub(super) fn named(&self) -> Vec<(String, Slot<'a>)> {
        let mut names: Vec<&String> =
            self.values.keys().filter(|key| !self.asked.borrow().contains(*key)).collect();
        names.sort();
        let pattern = format!("{}.*", self.pattern);
        names.into_iter().map(|name| (name.clone(), self.slot(name, pattern.clone()))).collect()
    }

    fn slot(&self, key: &str, pattern: String) -> Slot<'a> {
        self.asked.borrow_mut().insert(key.to_owned());
        let mut path = self.path.clone();
        path.push(Step::Key(key.to_owned()));
        Slot { report: self.report, path, pattern, value: self.values.get(key), quiet: self.quiet }
    }

    /// A fault of the table as a whole.
    pub(super) fn fault(&self, reason: impl Into<String>) {
        self.report.fault(&self.path, reason);
    }

    /// The table's path.
    pub(super) fn path(&self) -> String {
        dotted(&self.path)
    }

    pub(super) fn report(&self) -> &'a Report<'a> {
        self.report
    }
}

impl Drop for Table<'_> {
    fn drop(&mut self) {
        let known = self.asked.borrow().clone();
        for (key, slot) in self.named() {
            let what = if self.path.is_empty() { "is no section" } else { "is no key here" };
            slot.fault(format!("{what}{}", units::suggestion(&key, known.iter().map(String::as_str))));
        }
    }
}

impl<'a> Slot<'a> {
    pub(super) fn fault(&self, reason: impl Into<String>) {
        self.report.fault(&self.path, reason);
    }

    /// The key, dotted.
    pub(super) fn path(&self) -> String {
        dotted(&self.path)
    }

    pub(super) fn report(&self) -> &'a Report<'a> {
        self.report
    }

    /// Where the value was set: a file with its line, a variable; `None` is the built-in default.
    pub(super) fn origin(&self) -> Option<&'a str> {
        let origin = self.report.layers.origin(&self.path).0;
        (origin != BUILT_IN).then_some(origin)
    }

    pub(super) fn textual(&self) -> bool {
        self.report.layers.origin(&self.path).1
    }

    /// Notes the value, as a whole, for the effective config.
    pub(super) fn leaf(&self, value: &Value) {
        if !self.quiet {
            let origin = self.origin().map(str::to_owned);
            self.report.leaves.borrow_mut().push(Leaf::new(self.path.clone(), value, inline(value), origin));
        }
    }

    /// Shows what is here in one line, however much is in it.
    pub(super) fn in_one_line(mut self) -> Self {
        if let Some(value) = self.value {
            self.leaf(value);
        }
        self.quiet = true;
        self
    }

    /// What the value is, for a message; or a fault that it is missing.
    pub(super) fn present(&self) -> Option<&'a Value> {
        if self.value.is_none() {
            self.fault("is missing: add it");
        }
        self.value
    }

    pub(super) fn wrong_type(&self, value: &Value, wanted: &str) {
        let found = match &value.kind {
            ValueKind::Nil => return,
            ValueKind::Boolean(_) => "a boolean",
            ValueKind::Float(_) => "a number with a fraction",
            ValueKind::String(_) => "a string",
            ValueKind::Table(_) => "a table",
            ValueKind::Array(_) => "a list",
            _ => "a whole number",
        };
        self.fault(format!("must be {wanted}, not {found}"));
    }

    fn text(&self, wanted: &str) -> Option<&'a str> {
        let value = self.present()?;
        match &value.kind {
            ValueKind::String(text) => Some(text),
            _ => {
                self.wrong_type(value, wanted);
                None
            }
        }
    }

    /// A string, not empty.
    pub(super) fn string(&self) -> Option<&'a str> {
        self.parse("a string", |text| {
            if text.is_empty() { Err("is empty: give it a value".to_owned()) } else { Ok(()) }
        })?;
        self.text("a string")
    }

    /// A string, or nothing where it is empty: how a file takes away what a lower layer gives.
    pub(super) fn string_or_empty(&self) -> Option<Option<&'a str>> {
        let text = self.text("a string")?;
        self.leaf(self.value?);
        Some((!text.is_empty()).then_some(text))
    }

    /// What a string says, by `read`, whose error completes the sentence.
    pub(super) fn parse<T>(
        &self,
        wanted: &str,
        read: impl FnOnce(&'a str) -> Result<T, String>,
    ) -> Option<T> {
        let text = self.text(wanted)?;
        self.leaf(self.value?);
        read(text).map_err(|reason| self.fault(reason)).ok()
    }

    /// A string out of a few.
    pub(super) fn choice<T: Copy>(&self, choices: &[(&str, T)]) -> Option<T> {
        let names = || choices.iter().map(|(name, _)| *name);
        self.parse("a string", |text| {
            choices.iter().find(|(name, _)| *name == text).map(|(_, choice)| *choice).ok_or_else(|| {
                let all: Vec<String> = names().map(quoted).collect();
                let (last, first) = all
                    .split_last()
                    .map_or((String::new(), String::new()), |(last, first)| (last.clone(), first.join(", ")));
                let all = if first.is_empty() { last } else { format!("{first} or {last}") };
                format!("{text:?} is not known: write {all}{}", units::suggestion(text, names()))
            })
        })
    }

    /// `true` or `false`.
    pub(super) fn boolean(&self) -> Option<bool> {
        let value = self.present()?;
        let boolean = match &value.kind {
            ValueKind::Boolean(boolean) => *boolean,
            ValueKind::String(text) if self.textual() && (text == "true" || text == "false") => {
                text == "true"
            }
            _ => {
                self.wrong_type(value, "true or false");
                return None;
            }
        };
        self.leaf(value);
        Some(boolean)
    }

    /// A URL that may hold a secret after its host: shown without.
    pub(super) fn secret_url<T>(&self, read: impl FnOnce(&'a str) -> Result<T, String>) -> Option<T> {
        let text = self.text("a string")?;
        let shown = quoted(&units::mask_path(text));
        let origin = self.origin().map(str::to_owned);
        self.report.leaves.borrow_mut().push(Leaf::new(self.path.clone(), self.value?, shown, origin));
        read(text).map_err(|reason| self.fault(reason)).ok()
    }

    /// A table.
    pub(super) fn table(&self) -> Option<Table<'a>> {
        let value = self.present()?;
        let ValueKind::Table(values) = &value.kind else {
            self.wrong_type(value, "a table");
            return None;
        };
        Some(Table {
            report: self.report,
            path: self.path.clone(),
            pattern: self.pattern.clone(),
            values,
            asked: RefCell::default(),
            quiet: self.quiet,
        })
    }

    /// Whether a table is here.
    pub(super) fn is_table(&self) -> bool {
        self.value.is_some_and(|value| matches!(value.kind, ValueKind::Table(_)))
    }

    /// Whether a list is here.
    pub(super) fn is_list(&self) -> bool {
        self.value.is_some_and(|value| matches!(value.kind, ValueKind::Array(_)))
    }

    /// Whether it is the built-in default that says so.
    pub(super) fn is_built_in(&self) -> bool {
        self.report.layers.origin(&self.path).0 == BUILT_IN
    }

    /// The names in a table, whatever is under them.
    pub(super) fn table_names(&self) -> Vec<&'a str> {
        match self.value.map(|value| &value.kind) {
            Some(ValueKind::Table(table)) => table.keys().map(String::as_str).collect(),
            _ => Vec::new(),
        }
    }

    /// A list's elements.
    pub(super) fn list(&self) -> Option<Vec<Slot<'a>>> {
        let value = self.present()?;
        let ValueKind::Array(list) = &value.kind else {
            self.wrong_type(value, "a list");
            return None;
        };
        let element = |(at, value): (usize, &'a Value)| {
            let mut path = self.path.clone();
            path.push(Step::Index(at));
            let pattern = format!("{}[]", self.pattern);
            Slot { report: self.report, path, pattern, value: Some(value), quiet: self.quiet }
        };
        Some(list.iter().enumerate().map(element).collect())
    }

    /// A list of strings, each read by `read`. A variable may also hold them with commas between.
    pub(super) fn strings<T>(&self, read: impl Fn(&str) -> Result<T, String>) -> Option<Vec<T>> {
        if let Some(Value { kind: ValueKind::String(text), .. }) = self.value
            && self.textual()
        {
            self.leaf(self.value?);
            let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
            let each = parts.map(|part| read(part).map_err(|reason| self.fault(reason)).ok());
            return all(each);
        }
        if let Some(Value { kind: ValueKind::String(text), .. }) = self.value {
            self.fault(format!("must be a list, not a string: write [{}]", quoted(text)));
            return None;
        }
        let elements = self.list()?;
        self.leaf(self.value?);
        all(elements.into_iter().map(|mut element| {
            element.quiet = true;
            element.parse("a string", &read)
        }))
    }
}

/// All of them, once each has had the chance to find its fault.
pub(super) fn all<T>(each: impl Iterator<Item = Option<T>>) -> Option<Vec<T>> {
    let each: Vec<Option<T>> = each.collect();
    each.into_iter().collect()
}
