package cli

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
)

// UsageError is a mistake on the command line, as opposed to one in what the
// command line names. [Main] exits with 2 for it.
type UsageError struct{ Err error }

// Error tells the mistake, or several, one a line.
func (e *UsageError) Error() string { return e.Err.Error() }

// Unwrap returns the mistake.
func (e *UsageError) Unwrap() error { return e.Err }

// Usagef makes a UsageError.
func Usagef(format string, args ...any) error {
	return &UsageError{fmt.Errorf(format, args...)}
}

// Flags are the flags of a program, in the order in which its help shows them.
// [NewFlags] makes them.
type Flags struct {
	set   *flag.FlagSet
	help  string
	items []item
	bad   error // what the function of an Each said, without the wrapping of package flag
}

// item is a line of the help: a flag, or a headline if it has no name.
type item struct{ name, value, usage string }

// NewFlags makes flags for a program whose help begins with the given text.
func NewFlags(program, help string) *Flags {
	f := &Flags{set: flag.NewFlagSet(program, flag.ContinueOnError), help: help}
	f.set.SetOutput(io.Discard) // Main prints errors, once
	return f
}

// Section begins a new group of flags in the help.
func (f *Flags) Section(title string) { f.items = append(f.items, item{usage: title}) }

// Text defines a flag with a text, whose default is what *p holds.
func (f *Flags) Text(p *string, name, value, usage string) {
	f.set.StringVar(p, name, *p, "")
	f.add(name, value, usage, *p)
}

// Duration defines a flag with a duration, whose default is what *p holds.
func (f *Flags) Duration(p *time.Duration, name, usage string) {
	f.set.DurationVar(p, name, *p, "")
	f.add(name, "DURATION", usage, p.String())
}

// Int defines a flag with a whole number, whose default is what *p holds.
func (f *Flags) Int(p *int, name, usage string) {
	f.set.IntVar(p, name, *p, "")
	f.add(name, "N", usage, strconv.Itoa(*p))
}

// Bool defines a flag without a value, which sets *p to true.
func (f *Flags) Bool(p *bool, name, usage string) {
	f.set.BoolVar(p, name, *p, "")
	f.add(name, "", usage, "")
}

// Each defines a flag that may be repeated: add gets each value, and its error
// becomes the one of the command line.
func (f *Flags) Each(name, value, usage string, add func(string) error) {
	f.set.Func(name, "", func(s string) error {
		err := add(s)
		if err != nil && f.bad == nil {
			f.bad = fmt.Errorf("--%s %q: %w", name, s, err)
		}
		return err
	})
	f.add(name, value, usage+" (repeatable)", "")
}

// Texts is Each for texts that need no look at this time.
func (f *Flags) Texts(p *[]string, name, value, usage string) {
	f.Each(name, value, usage, func(s string) error {
		if s == "" {
			return errors.New("it is empty")
		}
		*p = append(*p, s)
		return nil
	})
}

func (f *Flags) add(name, value, usage, fallback string) {
	if fallback != "" {
		usage += " (default " + fallback + ")"
	}
	f.items = append(f.items, item{name, value, usage})
}

// Parse reads the arguments. For -h it writes the help and returns
// flag.ErrHelp; other errors are a *UsageError.
func (f *Flags) Parse(args []string, stdout io.Writer) error {
	err := f.set.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		f.Help(stdout)
		return err
	case f.bad != nil:
		return &UsageError{f.bad}
	case err != nil:
		return &UsageError{twoDashes(err)}
	case f.set.NArg() > 0:
		return Usagef("unexpected argument %q: there are flags only", f.set.Arg(0))
	}
	return nil
}

// twoDashes writes flags in an error of package flag as the help does.
func twoDashes(err error) error {
	text := err.Error()
	for _, before := range []string{"not defined: -", "for flag -", "for -", "needs an argument: -"} {
		text = strings.Replace(text, before, before+"-", 1)
	}
	return errors.New(strings.Replace(text, "---", "--", 1))
}

// Help writes what the program is and all its flags.
func (f *Flags) Help(w io.Writer) {
	var b strings.Builder
	b.WriteString(strings.Trim(f.help, "\n") + "\n")
	for _, i := range f.items {
		if i.name == "" {
			b.WriteString("\n" + i.usage + ":\n")
			continue
		}
		b.WriteString(strings.TrimRight("  --"+i.name+" "+i.value, " ") + "\n")
		wrap(&b, i.usage, "        ", 80)
	}
	_, _ = io.WriteString(w, b.String())
}

// wrap writes text in lines of at most width columns.
func wrap(b *strings.Builder, text, indent string, width int) {
	line := indent
	for word := range strings.FieldsSeq(text) {
		if line != indent && len([]rune(line))+1+len([]rune(word)) > width {
			b.WriteString(line + "\n")
			line = indent
		}
		if line != indent {
			line += " "
		}
		line += word
	}
	b.WriteString(line + "\n")
}
