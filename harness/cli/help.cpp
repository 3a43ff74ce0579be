#include "harness/cli/help.h"

namespace dsv32::harness {
namespace {

constexpr size_t kNameColumns = 26;

std::string capitalised(std::string text) {
  if (!text.empty()) text[0] = static_cast<char>(std::toupper(static_cast<unsigned char>(text[0])));
  return text;
}

std::vector<const CLI::App*> shown_commands(const CLI::App& app) {
  return app.get_subcommands([](const CLI::App* command) { return !command->get_group().empty(); });
}

}  // namespace

HelpFormatter::HelpFormatter() { column_width(kNameColumns); }

std::string HelpFormatter::make_help(const CLI::App* app, std::string name,
                                     CLI::AppFormatMode) const {
  std::string text = capitalised(app->get_description()) + "\n\n" + usage(*app, name) + "\n";
  text += options(*app) + commands(*app);
  if (app->get_parent() == nullptr) text += "\n" + app->get_footer() + "\n";
  return text;
}

std::string HelpFormatter::usage(const CLI::App& app, const std::string& name) const {
  std::string text = "Usage: " + name + " [options]";
  for (const CLI::Option* word : app.get_options()) {
    if (word->get_positional()) text += " " + word->get_option_text();
  }
  if (shown_commands(app).empty()) return text + "\n";
  return text + (app.get_require_subcommand_min() == 0 ? " [command]\n" : " command\n");
}

std::string HelpFormatter::options(const CLI::App& app) const {
  std::string text;
  for (const std::string& group : app.get_groups()) {
    std::string lines;
    for (const CLI::Option* option : app.get_options()) {
      if (option->get_group() != group || option->get_positional()) continue;
      lines += line(option->get_name(false, true) + " " + option->get_option_text(),
                    option->get_description());
    }
    if (!group.empty() && !lines.empty()) text += group + ":\n" + lines + "\n";
  }
  text.resize(text.size() - 1);
  return text;
}

std::string HelpFormatter::commands(const CLI::App& app) const {
  std::string text;
  for (const CLI::App* command : shown_commands(app)) {
    text += line(command->get_name(), command->get_description());
  }
  return text.empty() ? "" : "\nCommands (each has its own --help):\n" + text;
}

std::string HelpFormatter::line(const std::string& name, const std::string& about) const {
  std::string text = "  " + name;
  text.resize(std::max(text.size() + 1, kNameColumns), ' ');
  return text + about + "\n";
}

}  // namespace dsv32::harness
