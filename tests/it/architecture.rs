//! Holds `src/` against the floors of the design: a part imports only from lower floors, and within a part no file needs
//! itself by a detour. What only tests see is not looked at.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use source::{File, Target, Tree};

mod source;

/// Every part and its floor. A part that is missing here may not be: decide where it stands first.
const FLOORS: [(&str, u8); 16] = [
    ("model", 0),
    ("meter", 1),
    ("telemetry", 1),
    ("net", 1),
    ("record", 2),
    ("quota", 2),
    ("tenant", 2),
    ("jobs", 2),
    ("store", 3),
    ("proxy", 4),
    ("admin", 4),
    ("settings", 5),
    ("gateway", 6),
    ("cli", 7),
    ("demo", 7),
    ("main", 7),
];

/// The only ways between parts of one floor: a command line has subcommands, and the demo is one.
const ACROSS: [(&str, &str); 3] = [("main", "cli"), ("main", "demo"), ("cli", "demo")];

/// What the data path must never see, however low it stands.
const NEVER: [(&str, &str); 2] = [("proxy", "store"), ("proxy", "admin")];

/// Names that collect what belongs elsewhere, and then everything depends on them.
const NO_MODULES: [&str; 7] = ["error", "errors", "types", "util", "utils", "prelude", "helpers"];

/// Parts on the request path: a panic there is a failed request.
const NO_PANICS: [&str; 5] = ["net", "proxy", "meter", "quota", "record"];

/// Parts that may write to standard output.
const MAY_PRINT: [&str; 3] = ["cli", "demo", "main"];

#[test]
fn every_import_goes_down() {
    let sources = sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    let tree = Tree::read(&sources);
    let crossing = tree.files.iter().flat_map(|file| &file.paths).count();
    assert!(
        tree.files.len() >= 15 && crossing >= 20,
        "{} files and {crossing} paths: not all read",
        tree.files.len()
    );
    let faults = faults(&tree);
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

/// Every fault of a tree, as `file:line: what`.
fn faults(tree: &Tree) -> Vec<String> {
    let mut faults = Vec::new();
    let mut edges: BTreeMap<usize, BTreeMap<usize, usize>> = BTreeMap::new();
    for (at, file) in tree.files.iter().enumerate() {
        faults.extend(misnamed(file));
        let Some(part) = file.module.first() else { continue };
        if floor(part).is_none() {
            faults.push(format!("src/{}: part {part} has no floor", file.name));
            continue;
        }
        faults.extend(panics_and_prints(file, part));
        for path in &file.paths {
            let named = path.segments.join("::");
            let here = format!("src/{}:{}", file.name, path.line);
            let Target::File(to) = tree.target(path) else {
                faults.push(format!("{here}: {part} → crate::{named}, which is in no part"));
                continue;
            };
            let other = &tree.files[to];
            if let Err(why) = allowed(part, &other.module[0]) {
                faults.push(format!("{here}: {part} → {}: {why} ({named})", other.module[0]));
            } else if to != at && file.module.starts_with(&other.module) {
                faults.push(format!(
                    "{here}: {} → its own {}: an item that belongs in a leaf ({named})",
                    file.name, other.name
                ));
            } else if to != at {
                edges.entry(at).or_default().entry(to).or_insert(path.line);
            }
        }
    }
    faults.extend(cycles(tree, &edges));
    faults
}

fn floor(part: &str) -> Option<u8> {
    FLOORS.iter().find(|(name, _)| *name == part).map(|(_, floor)| *floor)
}

fn allowed(from: &str, to: &str) -> Result<(), &'static str> {
    let (here, there) = (floor(from), floor(to));
    if from == to || ACROSS.contains(&(from, to)) {
        return Ok(());
    }
    if NEVER.contains(&(from, to)) {
        return Err("the data path never sees it");
    }
    match here.cmp(&there) {
        std::cmp::Ordering::Greater => Ok(()),
        std::cmp::Ordering::Equal => Err("sideways"),
        std::cmp::Ordering::Less => Err("upwards"),
    }
}

fn misnamed(file: &File) -> Option<String> {
    let name = file.module.iter().find(|name| NO_MODULES.contains(&name.as_str()))?;
    Some(format!("src/{}: a module named {name} belongs to nobody", file.name))
}

fn panics_and_prints(file: &File, part: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let text = |at: usize| file.tokens.get(at).map_or("", |token| token.text.as_str());
    for (at, token) in file.tokens.iter().enumerate().filter(|(_, token)| token.word) {
        let here = format!("src/{}:{}", file.name, token.line);
        let (owner, before) = (at.checked_sub(2).map_or("", text), at.checked_sub(1).map_or("", text));
        // `self.expect(…)` is a method of the type's own, as parsers have.
        let panics = token.text == "unwrap" || token.text == "expect" && owner != "self";
        if NO_PANICS.contains(&part) && panics && matches!(before, "." | "::") {
            faults.push(format!("{here}: {}() on the request path", token.text));
        }
        let prints = matches!(token.text.as_str(), "print" | "println" | "dbg") && text(at + 1) == "!";
        if !MAY_PRINT.contains(&part) && prints {
            faults.push(format!("{here}: {}! outside of {}", token.text, MAY_PRINT.join(", ")));
        }
    }
    faults
}

/// Every way from a file back to itself, once.
fn cycles(tree: &Tree, edges: &BTreeMap<usize, BTreeMap<usize, usize>>) -> Vec<String> {
    let mut found = Vec::new();
    let mut seen: BTreeSet<BTreeSet<usize>> = BTreeSet::new();
    for (&start, targets) in edges {
        for (&first, line) in targets {
            let Some(way) = way(edges, first, start) else { continue };
            if seen.insert(way.iter().copied().collect()) {
                let names: Vec<_> = way.iter().map(|at| tree.files[*at].name.as_str()).collect();
                let from = &tree.files[start].name;
                found.push(format!("src/{from}:{line}: a cycle: {from} → {}", names.join(" → ")));
            }
        }
    }
    found
}

/// The shortest way from one file to another, both included.
fn way(edges: &BTreeMap<usize, BTreeMap<usize, usize>>, from: usize, to: usize) -> Option<Vec<usize>> {
    let mut ways = std::collections::VecDeque::from([vec![from]]);
    let mut visited = BTreeSet::from([from]);
    while let Some(way) = ways.pop_front() {
        let last = *way.last()?;
        if last == to {
            return Some(way);
        }
        for &next in
            edges.get(&last).into_iter().flat_map(BTreeMap::keys).filter(|next| visited.insert(**next))
        {
            ways.push_back([way.as_slice(), &[next]].concat());
        }
    }
    None
}

/// The sources below a directory, by their path relative to it.
fn sources(root: &Path) -> BTreeMap<String, String> {
    let mut sources = BTreeMap::new();
    let mut directories = vec![root.to_path_buf()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).expect("the sources are there") {
            let path = entry.expect("a directory can be listed").path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(root).expect("found below it").components();
                let name: Vec<_> = name.map(|part| part.as_os_str().to_string_lossy().into_owned()).collect();
                sources.insert(name.join("/"), fs::read_to_string(&path).expect("sources are text"));
            }
        }
    }
    sources
}

/// The checker on trees that are made up: a test that can't fail says nothing.
mod made_up {
    use super::*;

    fn check(files: &[(&str, &str)]) -> Vec<String> {
        let sources = files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
        faults(&Tree::read(&sources))
    }

    #[track_caller]
    fn one_fault(files: &[(&str, &str)], says: &str) {
        let faults = check(files);
        assert!(faults.len() == 1 && faults[0].contains(says), "{faults:#?} instead of {says:?}");
    }

    #[track_caller]
    fn sound(files: &[(&str, &str)]) {
        assert_eq!(check(files), Vec::<String>::new());
    }

    const MODEL: (&str, &str) = ("model/mod.rs", "pub mod event;");
    const EVENT: (&str, &str) = ("model/event.rs", "pub struct Event;");
    const STORE: (&str, &str) = ("store/mod.rs", "pub struct Store;");

    #[test]
    fn an_import_of_a_lower_floor_is_sound() {
        sound(&[MODEL, EVENT, ("quota/mod.rs", "use crate::model::event::Event;")]);
        sound(&[MODEL, EVENT, ("main.rs", "fn main() { tollgate::model::event::Event; }")]);
    }

    #[test]
    fn an_import_upwards_is_named_with_file_line_and_arrow() {
        let upwards = ("quota/mod.rs", "//! Docs.\n\nuse crate::{model::event::Event, store::Store};");
        one_fault(&[MODEL, EVENT, STORE, upwards], "src/quota/mod.rs:3: quota → store: upwards");
    }

    #[test]
    fn a_path_in_the_middle_of_code_counts_and_one_in_a_macro() {
        let files = |code| [STORE, ("quota/mod.rs", code)];
        one_fault(&files("fn f(s: &crate::store::Store) {}"), "quota → store");
        one_fault(&files("fn f() { println_all!(\"{}\", crate::store::Store) }"), "quota → store");
        one_fault(&files("fn f() { super::store::open() }"), "quota → store");
        one_fault(&files("mod inner { use super::super::store::Store; }"), "quota → store");
    }

    #[test]
    fn comments_strings_and_tests_do_not_count() {
        sound(&[
            STORE,
            (
                "quota/mod.rs",
                r##"// use crate::store::Store;
                /* crate::store::Store /* nested */ crate::store */
                /// [`crate::store::Store`]
                const A: &str = "crate::store::Store \" crate::store::Store";
                const B: &str = r#"" crate::store::Store "#;
                const C: char = '"'; const D: char = '\''; fn e<'a>(_: &'a str) {}
                #[cfg(test)] use crate::store::Store;
                #[cfg(test)] mod tests { use crate::store::Store; fn f() { x.unwrap() } }
                #[cfg(test)] mod others;
                #[cfg(test)] #[allow(dead_code)] pub(super) fn f(s: crate::store::Store) -> u8 { 1 }
                struct S { #[cfg(test)] store: crate::store::Store, other: u8 }"##,
            ),
            ("quota/others.rs", "use crate::store::Store;"),
            ("quota/others/deeper.rs", "use crate::store::Store;"),
        ]);
        one_fault(&[STORE, ("quota/mod.rs", "#[cfg(not(test))] use crate::store::Store;")], "quota → store");
        one_fault(
            &[STORE, ("quota/mod.rs", "#[cfg(test)] mod a { } use crate::store::Store;")],
            "quota → store",
        );
    }

    #[test]
    fn parts_of_one_floor_do_not_see_each_other() {
        let record = ("record/mod.rs", "pub struct Recorder;");
        one_fault(&[record, ("quota/mod.rs", "use crate::record::Recorder;")], "quota → record: sideways");
        let telemetry = ("telemetry.rs", "pub struct Metrics;");
        one_fault(
            &[telemetry, ("meter/mod.rs", "use crate::telemetry::Metrics;")],
            "meter → telemetry: sideways",
        );
    }

    #[test]
    fn the_proxy_never_sees_the_store() {
        one_fault(
            &[STORE, ("proxy/mod.rs", "use crate::store;")],
            "proxy → store: the data path never sees it",
        );
        sound(&[STORE, ("admin/mod.rs", "use crate::store;")]);
    }

    #[test]
    fn a_command_line_may_start_the_demo_and_not_the_other_way_round() {
        let (cli, demo) = (("cli.rs", "use crate::demo;"), ("demo/mod.rs", ""));
        sound(&[cli, demo]);
        one_fault(&[("cli.rs", ""), ("demo/mod.rs", "use crate::cli;")], "demo → cli: sideways");
    }

    #[test]
    fn a_child_does_not_import_what_its_mod_rs_defines() {
        let part = ("quota/mod.rs", "mod ledger; pub struct Limit; pub use ledger::Ledger;");
        one_fault(&[part, ("quota/ledger.rs", "use super::Limit;")], "its own quota/mod.rs");
        one_fault(&[part, ("quota/ledger.rs", "use super::*;")], "its own quota/mod.rs");
        one_fault(&[part, ("quota/ledger.rs", "fn f(l: crate::quota::Limit) {}")], "its own quota/mod.rs");
    }

    #[test]
    fn a_re_export_is_followed_to_where_it_comes_from() {
        let leaf = ("quota/leaf.rs", "pub struct Limit;");
        let user = ("quota/ledger.rs", "use super::Limit;");
        sound(&[("quota/mod.rs", "mod leaf; mod ledger; pub use leaf::Limit;"), leaf, user]);
        sound(&[("quota/mod.rs", "mod leaf; mod ledger; pub use leaf::*;"), leaf, user]);
        sound(&[
            ("quota/mod.rs", "mod leaf; mod ledger; pub(crate) use self::leaf::{Limit as L, Limit};"),
            leaf,
            user,
        ]);
        let store = ("store/mod.rs", "pub use crate::admin::Admin;");
        let admin = ("admin/mod.rs", "pub struct Admin;");
        let faults = check(&[store, admin, ("proxy/mod.rs", "use crate::store::Admin;")]);
        assert!(faults.iter().any(|fault| fault.contains("proxy → admin")), "{faults:#?}");
    }

    #[test]
    fn files_of_a_part_do_not_need_each_other_in_a_circle() {
        let part = ("quota/mod.rs", "mod a; mod b; mod c; pub use a::A;");
        let a = ("quota/a.rs", "use super::b::B; pub struct A;");
        let b = ("quota/b.rs", "use super::c::C; pub struct B;");
        sound(&[part, a, b, ("quota/c.rs", "pub struct C;")]);
        let c = ("quota/c.rs", "\nuse crate::quota::A; pub struct C;");
        one_fault(&[part, a, b, c], "a cycle: quota/a.rs → quota/b.rs → quota/c.rs → quota/a.rs");
    }

    #[test]
    fn a_module_for_everything_is_refused() {
        one_fault(&[("quota/mod.rs", "mod utils;"), ("quota/utils.rs", "")], "a module named utils");
        one_fault(&[("quota/mod.rs", "mod error;"), ("quota/error.rs", "")], "a module named error");
    }

    #[test]
    fn a_part_without_a_floor_is_refused() {
        one_fault(&[("cache/mod.rs", "")], "part cache has no floor");
        one_fault(&[("quota/mod.rs", "use crate::Tollgate;")], "in no part");
    }

    #[test]
    fn panics_on_the_request_path_and_prints_are_found() {
        one_fault(
            &[("proxy/mod.rs", "fn f() {\n x.unwrap(); }")],
            "src/proxy/mod.rs:2: unwrap() on the request path",
        );
        one_fault(&[("meter/mod.rs", "fn f() { x.map(Option::unwrap); }")], "unwrap()");
        one_fault(&[("record/mod.rs", "fn f() { x.expect(\"y\"); }")], "expect()");
        one_fault(&[("store/mod.rs", "fn f() { println!(\"\"); }")], "println!");
        sound(&[
            ("meter/mod.rs", "#[expect(dead_code)] fn f() { self.expect(b'{'); x.unwrap_or(1); }"),
            ("store/mod.rs", "fn f() { x.unwrap(); }"),
            ("cli.rs", "fn f() { println!(\"\"); }"),
        ]);
    }
}
