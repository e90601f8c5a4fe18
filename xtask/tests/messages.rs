//! `docs/messages.md`, the table of all messages, must match the sources.

#![allow(clippy::unwrap_used)] // also in helper functions

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};
use syn::{Attribute, Expr, ExprMethodCall, ImplItemFn, ItemEnum, ItemFn, ItemImpl, ItemMod, ItemStruct, Lit, Macro};
use syn::{LitStr, Meta, TraitItemFn, Type, Variant};

/// The crate whose texts of the kind [`Kind::Text`] are not listed, because they describe drawings and not the program.
const WITHOUT_TEXTS: &str = "idefics-demo";

const INTRODUCTION: &str = "# Messages\n\n\
    Every message in the sources, by crate: errors and warnings, panics, and all other texts of at least three words \
    (parts\nof messages and of the output). Tests are left out, and so is `--help`. A test writes this table:\n\
    `UPDATE_MESSAGES=1 cargo test -p xtask --test messages`.\n";

/// What a message is for; also the heading of its table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Error,
    Panic,
    Text,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Error, Self::Panic, Self::Text];

    fn heading(self) -> &'static str {
        match self {
            Self::Error => "Errors and warnings",
            Self::Panic => "Panics",
            Self::Text => "Other texts",
        }
    }

    /// Returns the kind of the strings in a call of the macro `name`, or `None` for macros without messages.
    fn of_macro(name: &str) -> Option<Self> {
        match name {
            "anyhow" | "bail" | "ensure" => Some(Self::Error),
            "panic" | "unreachable" | "todo" | "unimplemented" => Some(Self::Panic),
            "assert" | "assert_eq" | "assert_ne" | "debug_assert" | "debug_assert_eq" => Some(Self::Panic),
            _ => None,
        }
    }

    /// Returns the kind of the strings in the arguments of the method `name`, or `None` for methods without messages.
    fn of_method(name: &str) -> Option<Self> {
        match name {
            "context" | "with_context" => Some(Self::Error),
            "expect" => Some(Self::Panic),
            _ => None,
        }
    }
}

struct Message {
    kind: Kind,
    file: String,
    item: String,
    text: String,
}

/// Collects the messages of a file.
struct Collector {
    file: String,
    /// The enclosing items: type, variant, function.
    items: Vec<String>,
    /// The kind of strings in the current expression.
    kind: Kind,
    messages: Vec<Message>,
}

impl Collector {
    fn push(&mut self, text: &str) {
        let words = text.split(|letter: char| !letter.is_ascii_lowercase()).filter(|word| word.len() > 1).count();
        let is_message = match self.kind {
            Kind::Error | Kind::Panic => words > 0,
            Kind::Text => words >= 3 && text.contains(' '),
        };
        if is_message {
            let (kind, file, item) = (self.kind, self.file.clone(), self.items.join("::"));
            self.messages.push(Message { kind, file, item, text: text.to_owned() });
        }
    }

    fn within(&mut self, item: impl ToString, visit: impl FnOnce(&mut Self)) {
        self.items.push(item.to_string());
        visit(self);
        self.items.pop();
    }

    fn with_kind(&mut self, kind: Option<Kind>, visit: impl FnOnce(&mut Self)) {
        let outer = self.kind;
        self.kind = kind.unwrap_or(outer);
        visit(self);
        self.kind = outer;
    }

    fn tokens(&mut self, tokens: TokenStream) {
        let mut after_hash = false;
        for token in tokens {
            let is_attribute = after_hash; // documentation in a macro, for example
            after_hash = matches!(&token, TokenTree::Punct(punct) if punct.as_char() == '#');
            match token {
                TokenTree::Group(group) if !is_attribute => self.tokens(group.stream()),
                TokenTree::Literal(literal) => {
                    if let Lit::Str(text) = Lit::new(literal) {
                        self.push(&text.value());
                    }
                }
                _ => {}
            }
        }
    }
}

/// Whether an item is compiled only for tests.
fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| match &attribute.meta {
        Meta::Path(path) => path.is_ident("test"),
        Meta::List(list) => list.path.is_ident("cfg") && list.tokens.to_string() == "test",
        Meta::NameValue(_) => false,
    })
}

impl<'ast> Visit<'ast> for Collector {
    fn visit_attribute(&mut self, attribute: &'ast Attribute) {
        if let Meta::List(list) = &attribute.meta
            && list.path.is_ident("error")
        {
            self.with_kind(Some(Kind::Error), |this| this.tokens(list.tokens.clone()));
        }
    }

    fn visit_lit_str(&mut self, text: &'ast LitStr) {
        self.push(&text.value());
    }

    fn visit_macro(&mut self, call: &'ast Macro) {
        let name = call.path.segments.last().unwrap().ident.to_string();
        if name == "asm" {
            return;
        }
        self.with_kind(Kind::of_macro(&name), |this| this.tokens(call.tokens.clone()));
    }

    fn visit_expr_method_call(&mut self, call: &'ast ExprMethodCall) {
        self.visit_expr(&call.receiver);
        let arguments = |this: &mut Self| call.args.iter().for_each(|argument: &Expr| this.visit_expr(argument));
        self.with_kind(Kind::of_method(&call.method.to_string()), arguments);
    }

    fn visit_item_mod(&mut self, module: &'ast ItemMod) {
        if !is_test(&module.attrs) {
            visit::visit_item_mod(self, module);
        }
    }

    fn visit_item_impl(&mut self, block: &'ast ItemImpl) {
        let name = match &*block.self_ty {
            Type::Path(path) => path.path.segments.last().unwrap().ident.to_string(),
            _ => String::new(),
        };
        self.within(name, |this| visit::visit_item_impl(this, block));
    }

    fn visit_item_enum(&mut self, item: &'ast ItemEnum) {
        self.within(&item.ident, |this| visit::visit_item_enum(this, item));
    }

    fn visit_variant(&mut self, variant: &'ast Variant) {
        self.within(&variant.ident, |this| visit::visit_variant(this, variant));
    }

    fn visit_item_struct(&mut self, item: &'ast ItemStruct) {
        self.within(&item.ident, |this| visit::visit_item_struct(this, item));
    }

    fn visit_item_fn(&mut self, function: &'ast ItemFn) {
        if !is_test(&function.attrs) {
            self.within(&function.sig.ident, |this| visit::visit_item_fn(this, function));
        }
    }

    fn visit_impl_item_fn(&mut self, function: &'ast ImplItemFn) {
        self.within(&function.sig.ident, |this| visit::visit_impl_item_fn(this, function));
    }

    fn visit_trait_item_fn(&mut self, function: &'ast TraitItemFn) {
        self.within(&function.sig.ident, |this| visit::visit_trait_item_fn(this, function));
    }
}

/// Collects the source files below a folder, without files of tests.
fn sources(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("tests.rs") {
            files.push(path);
        }
    }
}

/// Returns the messages of a crate, in the order of files and lines.
fn collect(folder: &Path) -> Vec<Message> {
    let mut files = Vec::new();
    sources(&folder.join("src"), &mut files);
    files.sort();
    let mut messages = Vec::new();
    for path in files {
        let source = std::fs::read_to_string(&path).unwrap();
        let syntax = syn::parse_file(&source).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let file = path.strip_prefix(folder).unwrap().to_str().unwrap().replace('\\', "/");
        let mut collector = Collector { file, items: Vec::new(), kind: Kind::Text, messages: Vec::new() };
        collector.visit_file(&syntax);
        messages.append(&mut collector.messages);
    }
    messages
}

/// Returns the folders of the crates in the workspace, by name.
fn crates(root: &Path) -> BTreeMap<String, PathBuf> {
    let folders = std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path());
    let crates = folders.filter(|path| path.join("Cargo.toml").is_file() && path.join("src/").is_dir());
    let named = crates.map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), path));
    named.filter(|(name, _)| name != "fuzz").collect()
}

fn table(root: &Path) -> String {
    let mut text = INTRODUCTION.to_owned();
    for (name, folder) in crates(root) {
        let messages = collect(&folder);
        write!(text, "\n## {name}\n").unwrap();
        for kind in Kind::ALL {
            if kind == Kind::Text && name == WITHOUT_TEXTS {
                continue;
            }
            let rows = messages.iter().filter(|message| message.kind == kind);
            let rows: Vec<String> = rows.map(row).collect();
            if !rows.is_empty() {
                write!(text, "\n### {}\n\n| file | item | message |\n|---|---|---|\n", kind.heading()).unwrap();
                text.extend(rows);
            }
        }
    }
    text
}

fn row(message: &Message) -> String {
    let text = message.text.replace('|', "\\|").replace('\n', "\\n").replace('<', "\\<");
    format!("| {} | {} | {} |\n", message.file, message.item, text.trim())
}

#[test]
fn table_of_messages_matches_the_sources() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let path = root.join("docs/messages.md");
    let expected = table(&root);
    if std::env::var_os("UPDATE_MESSAGES").is_some() {
        return std::fs::write(&path, expected).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    if committed == expected {
        return;
    }
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<BTreeSet<String>>();
    let (old, new) = (lines(&committed), lines(&expected));
    let changes: Vec<String> = std::iter::empty()
        .chain(old.difference(&new).map(|line| format!("- {line}")))
        .chain(new.difference(&old).map(|line| format!("+ {line}")))
        .collect();
    panic!(
        "docs/messages.md does not match the sources. Read the changes, then write it again with\n\
         UPDATE_MESSAGES=1 cargo test -p xtask --test messages\n\n{}\n",
        changes.join("\n")
    );
}
