//! Parses statements, with one function per tag.
//!
//! Source: `jinja2.parser.Parser`.

use std::sync::Arc;

use crate::ast::{Block, Body, Expr, ExprKind, For, Macro, Name, Stmt, StmtKind, Target};
use crate::error::{Error, Result};
use crate::lexer::Token;
use crate::parse_target::check_assignable;
use crate::parser::{Parser, Uses};
use crate::symbols::resolve;

/// Maximum nesting depth of statements.
const MAX_NESTED_STATEMENTS: u32 = 64;

type Params = Vec<(Name, Option<Expr>)>;

impl Parser {
    pub(crate) fn statement(&mut self, line: u32, ends: &[&str], body: &mut Body) -> Result<()> {
        if self.nested_statements >= MAX_NESTED_STATEMENTS {
            return Err(Error::limit(format!("{MAX_NESTED_STATEMENTS} nested statements")).at(line));
        }
        self.nested_statements += 1;
        let tag = self.expect_name()?;
        let kind = match &*tag {
            "for" => self.for_loop()?,
            "if" => self.condition()?,
            "set" => self.set()?,
            "with" => self.with()?,
            "macro" => {
                let name = self.store_name()?;
                StmtKind::Macro(Arc::new(self.macro_body(Some(name), "endmacro")?))
            }
            "call" => self.call_block(line)?,
            "filter" => {
                let filter = self.filter_chain(None)?;
                StmtKind::Filter(filter, self.statements_to("endfilter")?)
            }
            "print" => {
                let mut separated = true;
                while !matches!(self.peek(), Token::BlockEnd) {
                    if !separated {
                        self.expect_operator(",")?;
                    }
                    let value = self.expression(true)?;
                    body.push(Stmt { line, kind: StmtKind::Print(value) });
                    separated = false;
                }
                self.nested_statements -= 1;
                return Ok(());
            }
            "block" => self.block()?,
            "autoescape" => {
                let value = self.expression(true)?;
                StmtKind::Autoescape(value, self.statements_to("endautoescape")?)
            }
            "generation" => {
                let Macro { body, uses, .. } = self.macro_rest(line, None, Params::new(), "endgeneration")?;
                StmtKind::Generation(body, uses)
            }
            "break" | "continue" => {
                if !self.loops.last().copied().unwrap_or(false) {
                    return Err(Error::syntax(format!("{tag} outside of a loop"), line));
                }
                if &*tag == "break" { StmtKind::Break } else { StmtKind::Continue }
            }
            "include" | "import" | "from" | "extends" => self.load(&tag)?,
            _ => {
                let expected = match ends {
                    [] => String::new(),
                    ends => format!("; expected {}", ends.join(" or ")),
                };
                return Err(Error::syntax(format!("unknown tag '{tag}'{expected}"), line));
            }
        };
        body.push(Stmt { line, kind });
        self.nested_statements -= 1;
        Ok(())
    }

    fn for_loop(&mut self) -> Result<StmtKind> {
        let line = self.line();
        let target = self.target(false)?;
        self.expect_word("in")?;
        let iter = self.tuple(false, false)?;
        let test = if self.skip_name("if") { Some(self.expression(true)?) } else { None };
        let recursive = self.skip_name("recursive");
        self.loops.push(true);
        let body = self.statements(&["endfor", "else"])?;
        self.loops.pop();
        let otherwise = match self.skip_name("else") {
            true => self.statements_to("endfor")?,
            false => {
                self.position += 1;
                Body::new()
            }
        };
        let assigns_loop = writes_loop(&target) || body.iter().chain(&otherwise).any(assigns_loop);
        if assigns_loop {
            return Err(Error::syntax("cannot assign to the special variable loop inside of a loop", line));
        }
        Ok(StmtKind::For(Arc::new(For { target, iter, test, body, otherwise, recursive })))
    }

    fn condition(&mut self) -> Result<StmtKind> {
        let mut branches = Vec::new();
        loop {
            let test = self.tuple(false, false)?;
            let body = self.statements(&["elif", "else", "endif"])?;
            branches.push((test, body));
            if self.skip_name("elif") {
                continue;
            }
            if self.skip_name("else") {
                return Ok(StmtKind::If(branches, self.statements_to("endif")?));
            }
            self.position += 1;
            return Ok(StmtKind::If(branches, Body::new()));
        }
    }

    fn set(&mut self) -> Result<StmtKind> {
        let target = self.target(true)?;
        if self.skip_operator("=") {
            return Ok(StmtKind::Set(target, self.tuple(true, false)?));
        }
        let filter = if self.is_operator("|") { Some(self.filter_expr_chain()?) } else { None };
        Ok(StmtKind::SetBlock(target, filter, self.statements_to("endset")?))
    }

    /// Parses the filters of a `set` block, as in `|name(…)|name…`.
    fn filter_expr_chain(&mut self) -> Result<Expr> {
        self.expect_operator("|")?;
        self.filter_chain(None)
    }

    fn with(&mut self) -> Result<StmtKind> {
        let mut assignments = Vec::new();
        while !matches!(self.peek(), Token::BlockEnd) {
            if !assignments.is_empty() {
                self.expect_operator(",")?;
            }
            let target = self.target(false)?;
            self.expect_operator("=")?;
            assignments.push((target, self.expression(true)?));
        }
        Ok(StmtKind::With(assignments, self.statements_to("endwith")?))
    }

    fn store_name(&mut self) -> Result<Name> {
        let line = self.line();
        let name = self.expect_name()?;
        check_assignable(&name, line)?;
        self.note_store(&name);
        Ok(name)
    }

    /// Parses the parameters of a macro, if there are any, and then the body of the macro.
    fn macro_body(&mut self, name: Option<Name>, end: &str) -> Result<Macro> {
        let line = self.line();
        let params = match name.is_some() || self.is_operator("(") {
            true => self.signature()?,
            false => Vec::new(),
        };
        self.macro_rest(line, name, params, end)
    }

    fn macro_rest(&mut self, line: u32, name: Option<Name>, params: Params, end: &str) -> Result<Macro> {
        self.uses.push(Uses::default());
        self.loops.push(false);
        let body = self.statements_to(end)?;
        self.loops.pop();
        let mut uses = self.uses.pop().unwrap_or_default().read;
        for (param, default) in &params {
            match &**param {
                "caller" if uses.caller && default.is_none() => {
                    let message = "the special argument caller must be omitted or be given a default";
                    return Err(Error::syntax(message, line));
                }
                "kwargs" => uses.kwargs = false,
                "varargs" => uses.varargs = false,
                _ => {}
            }
        }
        Ok(Macro { name, params, body, uses })
    }

    fn signature(&mut self) -> Result<Params> {
        let mut params = Params::new();
        self.expect_operator("(")?;
        while !self.is_operator(")") {
            if !params.is_empty() {
                self.expect_operator(",")?;
            }
            let line = self.line();
            let name = self.expect_name()?;
            check_assignable(&name, line)?;
            if params.iter().any(|(other, _)| *other == name) {
                return Err(Error::syntax(format!("duplicate argument '{name}'"), line));
            }
            // A parameter counts as set, so enclosing macros no longer treat its name as special.
            self.note_store(&name);
            let default = match self.skip_operator("=") {
                true => Some(self.expression(true)?),
                false if params.last().is_some_and(|(_, default)| default.is_some()) => {
                    return Err(Error::syntax("an argument without a default follows one with a default", line));
                }
                false => None,
            };
            params.push((name, default));
        }
        self.expect_operator(")")?;
        Ok(params)
    }

    fn call_block(&mut self, line: u32) -> Result<StmtKind> {
        let params = if self.is_operator("(") { self.signature()? } else { Params::new() };
        let call = self.expression(true)?;
        let ExprKind::Call(_, args) = &call.kind else {
            return Err(Error::syntax("expected a call", line));
        };
        if args.named.iter().any(|(name, _)| &**name == "caller") {
            return Err(Error::syntax("keyword argument repeated: caller", line));
        }
        let body = self.macro_rest(line, None, params, "endcall")?;
        Ok(StmtKind::Call(call, Arc::new(body)))
    }

    fn block(&mut self) -> Result<StmtKind> {
        let line = self.line();
        let name = self.expect_name()?;
        let scoped = self.skip_name("scoped");
        let required = self.skip_name("required");
        let saved = (std::mem::take(&mut self.uses), std::mem::take(&mut self.loops));
        let mut body = self.statements_to("endblock")?;
        (self.uses, self.loops) = saved;
        let is_blank = |stmt: &Stmt| matches!(&stmt.kind, StmtKind::Data(text) if text.trim().is_empty());
        if required && !body.iter().all(is_blank) {
            return Err(Error::syntax("required blocks can only contain comments or white space", line));
        }
        self.skip_name(&name);
        if self.blocks.iter().any(|block| block.name == name) {
            return Err(Error::syntax(format!("block '{name}' defined twice"), line));
        }
        resolve(&mut body, false)?;
        let block = Arc::new(Block { name, body, required });
        self.blocks.push(block.clone());
        Ok(StmtKind::Block(block, scoped))
    }

    /// Parses a statement that loads a template. As in the reference, the statement fails only when it is executed.
    fn load(&mut self, tag: &str) -> Result<StmtKind> {
        self.expression(true)?;
        match tag {
            "include" => {
                if self.is_name("ignore") && self.second_is_name("missing") {
                    self.position += 2;
                }
                self.context_words();
                return Ok(StmtKind::Load("include"));
            }
            "extends" => return Ok(StmtKind::Load("extends")),
            "import" => {
                self.expect_word("as")?;
                self.store_name()?;
                self.context_words();
                return Ok(StmtKind::Load("import"));
            }
            _ => {}
        }
        self.expect_word("import")?;
        let mut names = 0;
        loop {
            if names > 0 {
                self.expect_operator(",")?;
            }
            if self.context_words() {
                break;
            }
            let line = self.line();
            if self.store_name()?.starts_with('_') {
                return Err(Error::syntax("names that start with an underscore cannot be imported", line));
            }
            names += 1;
            if self.skip_name("as") {
                self.store_name()?;
            }
            if self.context_words() || !self.is_operator(",") {
                break;
            }
        }
        Ok(StmtKind::Load("from"))
    }

    fn context_words(&mut self) -> bool {
        let found = (self.is_name("with") || self.is_name("without")) && self.second_is_name("context");
        self.position += if found { 2 } else { 0 };
        found
    }
}

fn writes_loop(target: &Target) -> bool {
    match target {
        Target::Name(name) => &**name == "loop",
        Target::Attr(..) => false,
        Target::Tuple(items) => items.iter().any(writes_loop),
    }
}

/// Whether a statement inside a loop assigns to `loop`. Loops inside the statement have been checked already.
fn assigns_loop(stmt: &Stmt) -> bool {
    let any = |body: &Body| body.iter().any(assigns_loop);
    match &stmt.kind {
        StmtKind::Set(target, _) => writes_loop(target),
        StmtKind::SetBlock(target, _, body) => writes_loop(target) || any(body),
        StmtKind::If(branches, otherwise) => branches.iter().any(|(_, body)| any(body)) || any(otherwise),
        // `with` declares its targets in a new scope, so a target may be named `loop`.
        StmtKind::With(_, body) => any(body),
        StmtKind::Block(block, _) => any(&block.body),
        StmtKind::Filter(_, body) | StmtKind::Autoescape(_, body) | StmtKind::Generation(body, _) => any(body),
        StmtKind::Macro(declared) => any(&declared.body),
        StmtKind::Call(_, body) => any(&body.body),
        _ => false,
    }
}
