//! Modules whose parts are not in the names of their tensors.

/// Implements [`Module`](burn::module::Module) for a struct of modules whose fields lie side by side in a checkpoint:
/// the names of the parts themselves are not in the paths.
///
/// ```
/// use burn::module::Module;
/// use burn::tensor::Device;
/// use idefics_nn::{Embedding, RmsNorm, flat_module};
///
/// #[derive(Module, Debug)]
/// struct Body {
///     norm: RmsNorm,
/// }
///
/// #[derive(Clone, Debug)]
/// struct Tower {
///     table: Embedding, // its tensor is `weight`
///     body: Body,       // `norm.weight`
/// }
/// flat_module!(Tower { table, body });
/// ```
///
/// And for an enum of parameters, whose name in a checkpoint is that of the field which holds the enum:
///
/// ```
/// use burn::module::Param;
/// use burn::tensor::Tensor;
/// use idefics_nn::flat_module;
///
/// #[derive(Clone, Debug)]
/// enum Gate {
///     Scalar(Param<Tensor<1>>),
///     Vector(Param<Tensor<3>>),
/// }
/// flat_module!(enum Gate { Scalar, Vector });
/// ```
#[macro_export]
macro_rules! flat_module {
    ($module:ident { $($part:ident),+ $(,)? }) => {
        impl ::burn::module::Module for $module {
            fn collect_devices(&self, devices: ::burn::module::Devices) -> ::burn::module::Devices {
                $(let devices = ::burn::module::Module::collect_devices(&self.$part, devices);)+
                devices
            }

            fn fork(self, device: &::burn::tensor::Device) -> Self {
                Self { $($part: ::burn::module::Module::fork(self.$part, device)),+ }
            }

            fn to_device(self, device: &::burn::tensor::Device) -> Self {
                Self { $($part: ::burn::module::Module::to_device(self.$part, device)),+ }
            }

            fn train(self) -> Self {
                Self { $($part: ::burn::module::Module::train(self.$part)),+ }
            }

            fn valid(&self) -> Self {
                Self { $($part: ::burn::module::Module::valid(&self.$part)),+ }
            }

            fn materialize(self) -> Self {
                Self { $($part: ::burn::module::Module::materialize(self.$part)),+ }
            }

            fn visit<V: ::burn::module::ModuleVisitor>(&self, visitor: &mut V) {
                $(::burn::module::Module::visit(&self.$part, visitor);)+
            }

            fn map<M: ::burn::module::ModuleMapper>(self, mapper: &mut M) -> Self {
                Self { $($part: ::burn::module::Module::map(self.$part, mapper)),+ }
            }
        }

        impl ::burn::module::ModuleDisplay for $module {}

        impl ::burn::module::ModuleDisplayDefault for $module {
            fn content(&self, content: ::burn::module::Content) -> Option<::burn::module::Content> {
                content$(.add(stringify!($part), &self.$part))+.optional()
            }
        }
    };
    (enum $module:ident { $($variant:ident),+ $(,)? }) => {
        impl ::burn::module::Module for $module {
            fn collect_devices(&self, devices: ::burn::module::Devices) -> ::burn::module::Devices {
                match self {
                    $(Self::$variant(inner) => ::burn::module::Module::collect_devices(inner, devices)),+
                }
            }

            fn fork(self, device: &::burn::tensor::Device) -> Self {
                match self {
                    $(Self::$variant(inner) => Self::$variant(::burn::module::Module::fork(inner, device))),+
                }
            }

            fn to_device(self, device: &::burn::tensor::Device) -> Self {
                match self {
                    $(Self::$variant(inner) => Self::$variant(::burn::module::Module::to_device(inner, device))),+
                }
            }

            fn train(self) -> Self {
                match self {
                    $(Self::$variant(inner) => Self::$variant(::burn::module::Module::train(inner))),+
                }
            }

            fn valid(&self) -> Self {
                match self {
                    $(Self::$variant(inner) => Self::$variant(::burn::module::Module::valid(inner))),+
                }
            }

            fn materialize(self) -> Self {
                match self {
                    $(Self::$variant(inner) => Self::$variant(::burn::module::Module::materialize(inner))),+
                }
            }

            fn visit<V: ::burn::module::ModuleVisitor>(&self, visitor: &mut V) {
                match self {
                    $(Self::$variant(inner) => ::burn::module::Module::visit(inner, visitor)),+
                }
            }

            fn map<M: ::burn::module::ModuleMapper>(self, mapper: &mut M) -> Self {
                match self {
                    $(Self::$variant(inner) => Self::$variant(::burn::module::Module::map(inner, mapper))),+
                }
            }
        }

        impl ::burn::module::ModuleDisplay for $module {}

        impl ::burn::module::ModuleDisplayDefault for $module {
            fn content(&self, content: ::burn::module::Content) -> Option<::burn::module::Content> {
                match self {
                    $(Self::$variant(inner) => content.add(stringify!($variant), inner).optional()),+
                }
            }
        }
    };
}
