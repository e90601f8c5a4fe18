//! The abstract syntax tree of a template.

use std::sync::Arc;

use num_bigint::BigInt;

/// An identifier, as written in the template.
pub(crate) type Name = Arc<str>;

#[derive(Debug, Clone)]
pub(crate) enum Const {
    None,
    Bool(bool),
    Int(i64),
    Big(Arc<BigInt>),
    Float(f64),
    Str(Arc<str>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum UnaryOp {
    Not,
    Neg,
    Pos,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BinaryOp {
    Add,
    Sub,
    Mul,
    Div,
    FloorDiv,
    Mod,
    Pow,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CompareOp {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    In,
    NotIn,
}

/// An expression with its line and nesting depth. `is_constant` is set if the expression uses no variables. The
/// reference evaluates such an expression when it compiles the template.
#[derive(Debug)]
pub(crate) struct Expr {
    pub(crate) line: u32,
    pub(crate) depth: u32,
    pub(crate) is_constant: bool,
    pub(crate) kind: ExprKind,
}

#[derive(Debug)]
pub(crate) enum ExprKind {
    Const(Const),
    Name(Name),
    List(Vec<Expr>),
    Tuple(Vec<Expr>),
    Dict(Vec<(Expr, Expr)>),
    Concat(Vec<Expr>),
    Unary(UnaryOp, Box<Expr>),
    Binary(BinaryOp, Box<(Expr, Expr)>),
    And(Box<(Expr, Expr)>),
    Or(Box<(Expr, Expr)>),
    Compare(Box<Expr>, Vec<(CompareOp, Expr)>),
    /// Inline `if`: the test, the value if the test is true, and the value of `else`.
    Cond(Box<(Expr, Expr, Option<Expr>)>),
    Attr(Box<Expr>, Name),
    Item(Box<(Expr, Expr)>),
    Slice(Box<[Option<Expr>; 3]>),
    Call(Box<Expr>, Box<Args>),
    /// The filtered value, the name of the filter, and the filter's other arguments. The value is `None` in the first
    /// filter of a `{% filter %}` or `{% set %}` block, which filters the text of the block's body.
    Filter(Option<Box<Expr>>, Name, Box<Args>),
    Test(Box<Expr>, Name, Box<Args>),
}

/// The arguments of a call.
#[derive(Debug, Default)]
pub(crate) struct Args {
    pub(crate) positional: Vec<Expr>,
    pub(crate) named: Vec<(Name, Expr)>,
    pub(crate) star: Option<Expr>,
    pub(crate) star_star: Option<Expr>,
}

/// The target of an assignment.
#[derive(Debug)]
pub(crate) enum Target {
    Name(Name),
    /// An attribute of a namespace: the names of the namespace and of the attribute.
    Attr(Name, Name),
    Tuple(Vec<Target>),
}

#[derive(Debug)]
pub(crate) struct Stmt {
    pub(crate) line: u32,
    pub(crate) kind: StmtKind,
}

pub(crate) type Body = Vec<Stmt>;

#[derive(Debug)]
pub(crate) enum StmtKind {
    Data(Arc<str>),
    Print(Expr),
    Set(Target, Expr),
    /// `{% set name | filters %}body{% endset %}`: the target, the filters if any, and the body.
    SetBlock(Target, Option<Expr>, Body),
    For(Arc<For>),
    /// The tests and bodies of `if` and `elif`, then the body of `else`.
    If(Vec<(Expr, Body)>, Body),
    With(Vec<(Target, Expr)>, Body),
    Macro(Arc<Macro>),
    /// The call, and the body of the `call` block. The body is passed as the argument `caller`.
    Call(Expr, Arc<Macro>),
    Filter(Expr, Body),
    Block(Arc<Block>, bool),
    Autoescape(Expr, Body),
    /// The body, and the special names (`caller`, `kwargs` and `varargs`) that it reads. The reference compiles the
    /// body to a macro, and macros define these names.
    Generation(Body, SpecialNames),
    /// Names that the enclosing body sets before it reads them. They are undefined until then, even if an outer scope
    /// defines them.
    Unset(Vec<Name>),
    Break,
    Continue,
    /// `include`, `import`, `from` or `extends`. They need a template loader, which the reference does not have.
    Load(&'static str),
}

#[derive(Debug)]
pub(crate) struct For {
    pub(crate) target: Target,
    pub(crate) iter: Expr,
    pub(crate) test: Option<Expr>,
    pub(crate) body: Body,
    pub(crate) otherwise: Body,
    pub(crate) recursive: bool,
}

/// A macro, or the body of a `call` block.
#[derive(Debug)]
pub(crate) struct Macro {
    pub(crate) name: Option<Name>,
    /// Parameter names with their default values.
    pub(crate) params: Vec<(Name, Option<Expr>)>,
    pub(crate) body: Body,
    /// Which of `caller`, `kwargs` and `varargs` the body reads before it sets them.
    pub(crate) uses: SpecialNames,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct SpecialNames {
    pub(crate) caller: bool,
    pub(crate) kwargs: bool,
    pub(crate) varargs: bool,
}

#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) name: Name,
    pub(crate) body: Body,
    pub(crate) required: bool,
}

impl Expr {
    /// Creates an expression. Its depth and `is_constant` follow from its children.
    pub(crate) fn new(line: u32, kind: ExprKind) -> Self {
        let depth = kind.children_depth() + 1;
        let is_constant = kind.is_constant();
        Self { line, depth, is_constant, kind }
    }
}

impl Expr {
    /// Calls `note` with every variable that the expression reads.
    pub(crate) fn names(&self, note: &mut impl FnMut(&Name)) {
        let mut all = |items: &[Self]| items.iter().for_each(|item| item.names(note));
        match &self.kind {
            ExprKind::Const(_) => {}
            ExprKind::Name(name) => note(name),
            ExprKind::List(items) | ExprKind::Tuple(items) | ExprKind::Concat(items) => all(items),
            ExprKind::Dict(pairs) => {
                for (key, value) in pairs {
                    key.names(note);
                    value.names(note);
                }
            }
            ExprKind::Unary(_, value) | ExprKind::Attr(value, _) => value.names(note),
            ExprKind::Binary(_, pair) | ExprKind::And(pair) | ExprKind::Or(pair) | ExprKind::Item(pair) => {
                pair.0.names(note);
                pair.1.names(note);
            }
            ExprKind::Compare(first, rest) => {
                first.names(note);
                rest.iter().for_each(|(_, value)| value.names(note));
            }
            ExprKind::Cond(parts) => {
                parts.0.names(note);
                parts.1.names(note);
                parts.2.iter().for_each(|value| value.names(note));
            }
            ExprKind::Slice(parts) => parts.iter().flatten().for_each(|value| value.names(note)),
            ExprKind::Call(value, args) | ExprKind::Test(value, _, args) => {
                value.names(note);
                args.all().for_each(|value| value.names(note));
            }
            ExprKind::Filter(value, _, args) => {
                value.iter().for_each(|value| value.names(note));
                args.all().for_each(|value| value.names(note));
            }
        }
    }
}

impl ExprKind {
    fn is_constant(&self) -> bool {
        let all = |items: &[Expr]| items.iter().all(|item| item.is_constant);
        match self {
            Self::Const(_) => true,
            Self::Name(_) | Self::Call(..) => false,
            Self::List(items) | Self::Tuple(items) | Self::Concat(items) => all(items),
            Self::Dict(pairs) => pairs.iter().all(|(key, value)| key.is_constant && value.is_constant),
            Self::Unary(_, value) | Self::Attr(value, _) => value.is_constant,
            Self::Binary(_, pair) | Self::Item(pair) => pair.0.is_constant && pair.1.is_constant,
            // Later operands may never be evaluated, so only the operands that are always evaluated must be constant.
            Self::And(pair) | Self::Or(pair) => pair.0.is_constant,
            Self::Cond(parts) => parts.0.is_constant,
            Self::Compare(first, rest) => first.is_constant && rest.iter().take(1).all(|(_, value)| value.is_constant),
            Self::Slice(parts) => parts.iter().flatten().all(|value| value.is_constant),
            // The reference passes the rendering context to these filters, so it does not evaluate them at compile
            // time.
            Self::Filter(_, name, _)
                if matches!(&**name, "map" | "select" | "reject" | "selectattr" | "rejectattr" | "random") =>
            {
                false
            }
            Self::Filter(value, _, args) => {
                value.as_ref().is_some_and(|value| value.is_constant) && args.all().all(|value| value.is_constant)
            }
            Self::Test(value, _, args) => value.is_constant && args.all().all(|value| value.is_constant),
        }
    }

    fn children_depth(&self) -> u32 {
        let depth = |expr: &Expr| expr.depth;
        match self {
            Self::Const(_) | Self::Name(_) => 0,
            Self::List(items) | Self::Tuple(items) | Self::Concat(items) => items.iter().map(depth).max().unwrap_or(0),
            Self::Dict(pairs) => pairs.iter().map(|(key, value)| key.depth.max(value.depth)).max().unwrap_or(0),
            Self::Unary(_, value) | Self::Attr(value, _) => value.depth,
            Self::Binary(_, pair) | Self::And(pair) | Self::Or(pair) | Self::Item(pair) => {
                pair.0.depth.max(pair.1.depth)
            }
            Self::Compare(first, rest) => rest.iter().map(|(_, value)| value.depth).fold(first.depth, u32::max),
            Self::Cond(parts) => parts.0.depth.max(parts.1.depth).max(parts.2.as_ref().map_or(0, depth)),
            Self::Slice(parts) => parts.iter().flatten().map(depth).max().unwrap_or(0),
            Self::Call(value, args) | Self::Test(value, _, args) => value.depth.max(args.depth()),
            Self::Filter(value, _, args) => value.as_ref().map_or(0, |value| value.depth).max(args.depth()),
        }
    }
}

impl Args {
    /// Returns all argument expressions.
    fn all(&self) -> impl Iterator<Item = &Expr> {
        let named = self.named.iter().map(|(_, value)| value);
        self.positional.iter().chain(named).chain(&self.star).chain(&self.star_star)
    }

    fn depth(&self) -> u32 {
        self.all().map(|value| value.depth).max().unwrap_or(0)
    }
}
