package entrypoint

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"
)

// Duration is written as in Go: "250ms", "10s", "1h30m", or the number 0.
type Duration time.Duration

// UnmarshalJSON implements json.Unmarshaler. Null leaves d as it is.
func (d *Duration) UnmarshalJSON(b []byte) error {
	var s string
	switch {
	case string(b) == "null":
		return nil
	case string(b) == "0":
		s = "0"
	case json.Unmarshal(b, &s) != nil:
		return fmt.Errorf("want a duration, a number with a unit as in 10s, got %s", shown(b))
	}
	v, err := time.ParseDuration(s)
	if err != nil {
		return fmt.Errorf("want a duration, as 250ms, 10s or 1h30m, of at most 292 years, got %s", shown(b))
	}
	*d = Duration(v)
	return nil
}

// MarshalJSON implements json.Marshaler.
func (d Duration) MarshalJSON() ([]byte, error) { return json.Marshal(time.Duration(d).String()) }

// configFile is a Config whose lists are read one by one.
type configFile struct {
	Listeners      json.RawMessage `json:"listeners"`
	Routes         json.RawMessage `json:"routes"`
	Limits         LimitsConfig    `json:"limits"`
	HeadTimeout    Duration        `json:"headTimeout"`
	DrainTimeout   Duration        `json:"drainTimeout"`
	RemovedTimeout Duration        `json:"removedTimeout"`
}

// unread says, by index, of what something could not be read: it is no use to
// look for what is missing there.
type unread struct{ listeners, routes map[int]bool }

// decodeConfig reads what can be read, and tells what cannot.
func decodeConfig(text []byte) (*Config, unread, error) {
	var file configFile
	errs := []error{within("entrypoint", decode(text, &file))}
	c := &Config{Limits: file.Limits, HeadTimeout: file.HeadTimeout, DrainTimeout: file.DrainTimeout, RemovedTimeout: file.RemovedTimeout}
	if isNull(file.Routes) {
		errs = append(errs, errors.New("entrypoint: routes: they are missing; if there are none, write routes: []"))
	}
	var bad unread
	var err error
	c.Listeners, bad.listeners, err = decodeList("listener", file.Listeners, func(l *ListenerConfig) string { return l.Address })
	errs = append(errs, err)
	c.Routes, bad.routes, err = decodeList("route", file.Routes, func(r *RouteConfig) string { return r.Name })
	return c, bad, errors.Join(append(errs, err)...)
}

// decodeList reads a list of objects, and says of which it could not read all.
func decodeList[T any](what string, raw json.RawMessage, name func(*T) string) ([]T, map[int]bool, error) {
	if isNull(raw) {
		return nil, nil, nil
	}
	var items []json.RawMessage
	if json.Unmarshal(raw, &items) != nil {
		return nil, map[int]bool{0: true}, fmt.Errorf("entrypoint: %ss: want a list, got %s", what, shown(raw))
	}
	var errs []error
	var bad map[int]bool
	list := make([]T, len(items))
	for i, item := range items {
		if err := decode(item, &list[i]); err != nil {
			if bad == nil {
				bad = make(map[int]bool)
			}
			bad[i] = true
			errs = append(errs, within(fmt.Sprintf("entrypoint: %s %q", what, called(i, name(&list[i]))), err))
		}
	}
	return list, bad, errors.Join(errs...)
}

// decode reads an object into a struct. Unlike encoding/json it takes names only
// as they are spelled, so that deny and Deny are not one, reads on after an error,
// and tells each with its field.
func decode(raw json.RawMessage, into any) error {
	var object map[string]json.RawMessage
	if json.Unmarshal(raw, &object) != nil || object == nil {
		return fmt.Errorf("want fields with values, got %s", shown(raw))
	}
	var errs []error
	var names []string
	v := reflect.ValueOf(into).Elem()
	for i := range v.NumField() {
		name := v.Type().Field(i).Tag.Get("json")
		names = append(names, name)
		if value, ok := object[name]; ok && name != "" {
			errs = append(errs, within(name, decodeField(value, v.Field(i).Addr().Interface())))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(object)) {
		if slices.Contains(names, name) && name != "" {
			continue
		}
		err := fmt.Errorf("unknown field %q", name)
		if i := slices.IndexFunc(names, func(n string) bool { return strings.EqualFold(n, name) }); i >= 0 {
			err = fmt.Errorf("%w: it is spelled %s", err, names[i])
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// decodeField reads a field. Null leaves it as it is, and so does an empty list.
func decodeField(raw json.RawMessage, into any) error {
	want := ""
	switch p := into.(type) {
	case *LimitsConfig:
		if isNull(raw) {
			return nil
		}
		return decode(raw, p)
	case *[]string:
		if string(raw) == "[]" {
			return nil
		}
		want = "a list of texts (a number is one in quotes)"
	case *string:
		want = "a text (a number is one in quotes)"
	case *int:
		want = "a whole number"
	case *bool:
		want = "true or false"
	}
	err := json.Unmarshal(raw, into)
	if err != nil && want != "" {
		return fmt.Errorf("want %s, got %s", want, shown(raw))
	}
	return err
}

func isNull(raw json.RawMessage) bool { return len(raw) == 0 || string(raw) == "null" }

// shown is a value for an error, as JSON writes it: texts in quotes, and too long
// ones not to their end.
func shown(raw []byte) string {
	if len(raw) > 80 {
		return strings.ToValidUTF8(string(raw[:80]), "") + "…"
	}
	return string(raw)
}

// called is how errors call the i-th of a list.
func called(i int, name string) string {
	if name == "" {
		return fmt.Sprintf("#%d", i+1)
	}
	return name
}

// within says of each of several errors where it is.
func within(where string, err error) error {
	several, ok := err.(interface{ Unwrap() []error })
	switch {
	case err == nil:
		return nil
	case !ok:
		return fmt.Errorf("%s: %w", where, err)
	}
	var errs []error
	for _, err := range several.Unwrap() {
		errs = append(errs, within(where, err))
	}
	return errors.Join(errs...)
}
